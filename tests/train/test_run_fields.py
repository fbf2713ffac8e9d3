"""Fields that a recipe names: a run opens them, asks them of the right trajectories, and keeps what they keep."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
import torch
from support import tiny
from torch import Tensor

import upge
from upge import BatchField, Context, Mask, PartError, RecipeError, Switch, Trajectory, View
from upge.train.run import train

CALLS: list[tuple[str, Any]] = []
"""What sessions were told, in order."""


@pytest.fixture(autouse=True)
def no_calls() -> Iterator[None]:
    CALLS.clear()
    yield
    CALLS.clear()


class Seen(BatchField):
    """1, and more by what the session has seen; NaN for demonstrations, or for failures, where it is `without` them."""

    per: ClassVar[Literal["token"]] = "token"
    times: float = 1.0
    without: Literal["demonstrations", "failures"] | None = None

    @contextmanager
    def open(self, context: Context) -> Iterator[Counting]:
        CALLS.append(("open", context.place))
        yield Counting(self)


class Counting:
    """The session."""

    def __init__(self, part: Seen) -> None:
        self.part, self.seen = part, 0

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        CALLS.append(("read", [(each.group, each.sample) for each in trajectories]))
        return torch.tensor([self.number(each) for each in trajectories for _ in each.response])

    def number(self, trajectory: Trajectory) -> float:
        missing = trajectory.demonstration if self.part.without == "demonstrations" else trajectory.reward <= 0
        return torch.nan if self.part.without and missing else 1 + self.part.times * self.seen / 1000

    def observe(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        CALLS.append(("observe", (step, len(trajectories))))
        assert not any(each.demonstration for each in trajectories)
        self.seen += len(trajectories)

    def learned(self, step: int, policy: Any) -> None:
        CALLS.append(("learned", step))

    def state(self) -> dict[str, Any]:
        return {"seen": self.seen, "as a tensor": torch.tensor([float(self.seen)])}

    def restore(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
        assert state["as a tensor"].tolist() == [self.seen]


class Times(Mask):
    """The number of a field."""

    by: upge.TokenField

    def __call__(self, b: View) -> Tensor:
        return b.field(self.by)


class Level(BatchField):
    """A number of the prompt."""

    per: ClassVar[Literal["prompt"]] = "prompt"
    wide: bool = False
    shape: Literal["right", "wrong"] = "right"

    def width(self) -> int | None:
        return 2 if self.wide else None

    @contextmanager
    def open(self, context: Context) -> Iterator[Level]:
        yield self

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        numbers = torch.tensor([float(each.group) for each in trajectories])
        return torch.stack([numbers, -numbers], 1) if self.wide or self.shape == "wrong" else numbers


class ByLevel(Switch):
    """All weight goes to `rl` on prompts with an odd level, and to `sft` on the others."""

    by: upge.PromptField

    def terms(self) -> tuple[str, ...]:
        return ("rl", "sft")

    def __call__(self, b: View) -> dict[str, Tensor]:
        level = b.field(self.by)
        CALLS.append(("level", level.tolist()))
        level = level if level.ndim == 1 else level[:, 0]
        return {"rl": (level % 2 == 1).to(level), "sft": (level % 2 == 0).to(level)}


GRPO = {"source": "rollouts", "denominator": "old", "advantage": "group_norm", "reduction": "token_mean"}
SFT = {"source": "demonstrations", "denominator": "current", "advantage": "one", "reduction": "token_mean"}
GATED = {"rl": GRPO, "sft": SFT}


def masked(by: str = "seen") -> dict[str, Any]:
    return {"terms": {"rl": {**GRPO, "mask": [Times(by=by)]}}}


def built(folder: Path, estimator: dict[str, Any], fields: dict[str, BatchField], *overrides: str) -> upge.Recipe:
    """The tiny recipe with these fields."""
    folder.mkdir(exist_ok=True)
    made = upge.load(tiny.recipe(folder), [f"log.folder={folder / 'run'}", "eval.splits=[]", *overrides])
    block = upge.Estimator.model_validate(estimator)
    return upge.Recipe.model_validate({**dict(made), "estimator": block, "fields": fields})


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == "train"]


def test_a_field_is_opened_told_and_asked_once_a_rollout_batch(tmp_path: Path) -> None:
    train(built(tmp_path, masked(), {"seen": Seen(), "idle": Seen()}, "train.steps=2", "train.minibatches=2"))
    names = [name for name, _ in CALLS]
    assert CALLS[0] == ("open", "fields.seen")
    assert names.count("open") == 1  # nobody reads `idle`
    told = [call for call in CALLS if call[0] != "read"][1:]
    assert told == [("observe", (0, 48)), ("learned", 0), ("observe", (1, 48)), ("learned", 1)]
    for step in range(2):
        first, last = (CALLS.index((name, value)) for name, value in ((told[2 * step]), (told[2 * step + 1])))
        asked = [row for name, rows in CALLS[first:last] if name == "read" for row in rows]
        assert len(asked) == len(set(asked)) <= 48


class Heat(Seen):
    """The temperature of each trajectory."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Heat]:
        yield self

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        CALLS.extend((f"demonstration: {each.demonstration}", each.temperature) for each in trajectories)
        return torch.ones(sum(len(each.response) for each in trajectories))


def test_trajectories_have_the_temperature_that_they_were_drawn_at(tmp_path: Path) -> None:
    block = {"terms": {"rl": {**GRPO, "mask": [Times(by="heat")]}, "sft": {**SFT, "mask": [Times(by="heat")]}}}
    train(built(tmp_path, block, {"heat": Heat()}, "train.steps=1", "rollout.temperature=0.7"))
    assert ("demonstration: True", 1.0) in CALLS
    assert set(CALLS) <= {("demonstration: False", 0.7), ("demonstration: True", 1.0)}


def test_a_field_of_ones_changes_no_bit(tmp_path: Path) -> None:
    plain = train(built(tmp_path / "plain", {"terms": {"rl": GRPO}}, {}))
    ones = train(built(tmp_path / "ones", masked(), {"seen": Seen(times=0.0)}))
    assert metrics(plain) == metrics(ones)
    doubled = train(built(tmp_path / "double", masked(), {"seen": Seen(times=1.0)}))
    assert metrics(plain) != metrics(doubled)


def test_a_resumed_run_has_what_its_fields_kept(tmp_path: Path) -> None:
    fields: dict[str, BatchField] = {"seen": Seen()}
    through = train(built(tmp_path / "through", masked(), fields, "train.steps=4"))
    half = built(tmp_path / "half", masked(), fields, "train.steps=2", "train.save_every=2")
    folder = train(half)
    saved = folder / "checkpoints" / "step-000002"
    assert json.loads((saved / "fields.json").read_text()) == {"seen": {"seen": 96}}
    (folder / "model").rename(folder / "first")
    more = half.model_copy(update={"train": half.train.model_copy(update={"steps": 4})})
    train(more, resume=folder)
    assert metrics(folder) == metrics(through)


def test_rows_without_a_number_are_counted_where_no_weight_meets_them(tmp_path: Path) -> None:
    block = {"terms": {**GATED, "rl": {**GRPO, "mask": [Times(by="seen")]}}}
    folder = train(built(tmp_path, block, {"seen": Seen(without="demonstrations")}, "train.steps=1"))
    assert metrics(folder)[0]["fields/seen/missing"] > 0
    folder = train(built(tmp_path / "none", masked(), {"seen": Seen()}, "train.steps=1"))
    assert "fields/seen/missing" not in metrics(folder)[0]


def test_a_missing_number_that_meets_a_weight_ends_the_run_and_names_who_weighs_it(tmp_path: Path) -> None:
    recipe = built(tmp_path, masked(), {"seen": Seen(without="failures")})
    named = r"Times \(estimator\.terms\.rl\.mask\.0\) returned NaN at token \d+"
    with pytest.raises(PartError, match=rf"{named}.*: no number is known there of the field seen"):
        train(recipe)


@pytest.mark.parametrize("wide", [False, True])
def test_a_switch_reads_a_number_per_prompt(tmp_path: Path, wide: bool) -> None:
    block = {"terms": GATED, "switch": [ByLevel(by="level")]}
    folder = train(built(tmp_path, block, {"level": Level(wide=wide)}, "train.steps=1"))
    shares = metrics(folder)[0]
    assert (shares["share/rl"], shares["share/sft"]) == (0.5, 0.5)
    wanted = [[float(place), float(-place)] if wide else float(place) for place in range(8)]
    assert ("level", wanted) in CALLS


def test_a_session_of_another_shape_is_named_with_what_would_be_right(tmp_path: Path) -> None:
    block = {"terms": GATED, "switch": [ByLevel(by="level")]}
    with pytest.raises(PartError, match=r"Level \(fields\.level\) returned the shape \(\d+, 2\) .*whose `width` is K"):
        train(built(tmp_path, block, {"level": Level(shape="wrong")}))


PARTS = Path(__file__)


@pytest.mark.parametrize(
    ("by", "said"),
    [
        ("sean", "did you mean 'seen'?"),
        ("level", "'level' has a number per prompt; this takes one per token"),
        ("reward", "'reward' has a number per trajectory; this takes one per token"),
    ],
)
def test_a_wrong_name_or_kind_is_refused_where_it_stands(tmp_path: Path, by: str, said: str) -> None:
    mask = f"{{use: '{PARTS}:Times', by: {by}}}"
    fields = f"{{seen: {{use: '{PARTS}:Seen'}}, level: {{use: '{PARTS}:Level'}}}}"
    path = tiny.recipe(tmp_path, estimator={"terms": {"rl": GRPO}})
    with pytest.raises(RecipeError) as caught:
        upge.load(path, [f"fields={fields}", f"estimator.terms.rl.mask={mask}"], allow_code=True)
    assert said in str(caught.value)
    assert re.search(r"command line:\d+:\d+", str(caught.value))


@pytest.mark.parametrize("name", ["reward", "logp", "turn", "not a name"])
def test_a_fields_name_is_an_identifier_and_none_of_the_machines(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="no name" if " " in name else name):
        built(tmp_path, masked(), {name: Seen(), "seen": Seen()})


class Of(Mask):
    """1; it remembers what the machine filled."""

    needs = frozenset({"token", "turn", "turn_reward", "forced", "staleness"})

    def __call__(self, b: View) -> Tensor:
        CALLS.extend((name, b.field(name)) for name in self.needs)
        return torch.ones_like(b.logp)

    def reads(self) -> frozenset[str]:
        return super().reads() | {"logp"}


def test_what_the_machine_fills_is_there_for_parts_that_declare_it(tmp_path: Path) -> None:
    train(built(tmp_path, {"terms": {"rl": {**GRPO, "mask": [Of()]}}}, {}, "train.steps=1"))
    found = dict(CALLS)
    tokens = len(found["token"])
    assert tokens > 0
    for name in ("turn", "forced", "turn_reward"):
        assert len(found[name]) == tokens
    for name in ("turn", "forced", "staleness"):  # a response is one turn, all of it sampled from the policy
        assert not found[name].any()
    assert found["token"].min() >= 0
