"""The recipes in recipes/invent/: each is its textbook's loss, on any ranks, with two short parts beside what ships."""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from support import textbook_fields as of_fields
from support import textbook_inventions as textbook
from support.methods import BUDGET
from support.mutants import Mutant
from support.tiers import spread
from test_gradients import pinned
from torch import Tensor

import upge
from upge import Batch, Estimator, Part
from upge.code import module_in
from upge.estimator.noise import mixed
from upge.part import State
from upge.part_checks import Per
from upge.testing import Padded, check_estimator, check_part, laws
from upge.testing.batches import LONG, PINNED, RICH, Case, fresh, seeded, with_fields
from upge.testing.strategies import cases

FOLDER = Path(__file__).parents[2] / "recipes" / "invent"


@dataclass(frozen=True)
class Chance:
    """What a textbook can't know: what chance decides, as upge's keys have it, and the recipe's fields.

    Attributes: noise: (B, L) of the part that draws. tokens (B, L), rows (B,): of equal numbers the least comes first.
        fields: (B, L) of tokens, (B,) of trajectories, (B, K) of prompts.
    """

    noise: Tensor
    tokens: Tensor
    rows: Tensor
    fields: Mapping[str, Tensor]

    @classmethod
    def of(cls, batch: Batch, place: str, mask: Tensor) -> Chance:
        noise = upge.View(batch, frozenset(), place=place).noise
        ranks = torch.argsort(torch.argsort(mixed(batch.trajectory_key)))
        return cls(
            torch.zeros(mask.shape, dtype=noise.dtype).masked_scatter(mask, noise),
            torch.zeros(mask.shape, dtype=torch.int64).masked_scatter(mask, batch.token_key),
            ranks,
            {
                **{
                    name: torch.zeros(mask.shape).to(x).masked_scatter(mask, x)
                    for name, x in batch.token_fields.items()
                },
                **batch.trajectory_fields,
                **{name: x[batch.prompt] for name, x in batch.prompt_fields.items()},
            },
        )

    def of_rows(self, chosen: Tensor) -> Chance:
        fields = {name: x[chosen] for name, x in self.fields.items()}
        return Chance(self.noise[chosen], self.tokens[chosen], self.rows[chosen], fields)


KINDS: dict[str, Per] = {
    **dict.fromkeys(("slow", "teacher", "hinted", "judge", "equals"), "token"),
    **dict.fromkeys(("format",), "trajectory"),
    **dict.fromkeys(("history",), "prompt"),
}


NAN = float("nan")
VISITS = ((1.0, 0.0, 0.25, NAN), (0.25, 0.75, NAN, NAN), (NAN, NAN, NAN, NAN), (0.0, 0.5, 0.5, 0.25))
"""Mean rewards of a prompt's last visits: the median of the first is at the gate, and its mean above it."""


def fielded(batch: Batch) -> Batch:
    """The batch with the recipes' fields: a third of the prompts have no hint."""
    batch = with_fields(batch, KINDS, {"history": 4})
    token, prompt = dict(batch.token_fields), dict(batch.prompt_fields)
    token["hinted"] = token["hinted"].where(batch.prompt[batch.trajectory] % 3 > 0, torch.nan)
    token["equals"] = (token["equals"] > -1).to(batch.dtype)
    prompt["history"] = torch.tensor(VISITS, dtype=batch.dtype)[torch.arange(batch.prompts) % len(VISITS)]
    return replace(batch, token_fields=token, prompt_fields=prompt)


Loss = Callable[[Padded, Chance, Sequence[Padded]], Tensor]


@dataclass(frozen=True)
class Invention:
    """A recipe's textbook loss, of a padded batch, what chance decides, and the rollout batches before.

    Attributes:
        overrides: so that short trajectories and few tokens meet its bounds.
        clipped: ratios at which the loss has a kink. draws: where the part that draws stands.
        undecided: whether rounding decides what the loss of a batch is.
    """

    loss: Loss
    overrides: tuple[str, ...] = ()
    clipped: tuple[float, ...] = (0.8, 1.2)
    draws: str = ""
    undecided: Callable[[Padded], bool] = field(default=lambda p: False)


def _tied(p: Padded, share: float = 0.3) -> bool:
    """Whether two covariances, one among the largest and one not, differ by rounding alone."""
    r = p.rollouts
    cov = textbook.covariance(r, textbook.group_advantages(r))[r.mask].sort(descending=True).values
    last = max(1, int(share * len(cov) + 1e-9))
    return bool(cov.any()) and 0 < last < len(cov) and bool(cov[last - 1] - cov[last] < 1e-9)


_SHORT = (f"rollout.max_tokens={BUDGET}", "estimator.shaping.soft_limit=3")
_EIGHTY = {"share": 0.2, "soft": 3, "limit": BUDGET}
_TARGETS = {"target": 1.4, "proportional": 0.05, "integral": 0.2, "limit": 0.03}

INVENTIONS: dict[str, Invention] = {
    "entropy_mask": Invention(
        lambda p, chance, before: textbook.eighty_twenty(p.rollouts, **_EIGHTY, divide_by_all=True),
        _SHORT,
        clipped=(0.8, 1.28),
    ),
    "entropy_selection": Invention(
        lambda p, chance, before: textbook.eighty_twenty(p.rollouts, **_EIGHTY, divide_by_all=False),
        _SHORT,
        clipped=(0.8, 1.28),
    ),
    "clip_cov": Invention(
        lambda p, chance, before: textbook.clip_cov(p.rollouts, _own(p, chance).noise, 0.1, 0.5, 3.0),
        tuple(f"estimator.terms.rl.mask.1.{each}" for each in ("share=0.1", "low=0.5", "high=3.0")),
        clipped=(2.0,),
        draws="terms.rl.mask.1",
    ),
    "clip_cov, as it comes": Invention(
        lambda p, chance, before: textbook.clip_cov(p.rollouts, _own(p, chance).noise, 2e-4, 1.0, 5.0),
        clipped=(2.0,),
        draws="terms.rl.mask.1",
    ),
    "kl_cov": Invention(
        lambda p, chance, before: textbook.kl_cov(p.rollouts, _own(p, chance).tokens, 0.3, 0.7),
        tuple(f"estimator.terms.kl.advantage.{each}" for each in ("share=0.3", "coefficient=0.7")),
        clipped=(),
        undecided=_tied,
    ),
    "online_dpo": Invention(
        lambda p, chance, before: textbook.online_dpo(p.rollouts, _own(p, chance).rows, 0.1), clipped=()
    ),
    "signed_counts": Invention(lambda p, chance, before: textbook.signed_counts(p.rollouts)),
    "entropy_controller": Invention(
        lambda p, chance, before: textbook.controlled_entropy(p.rollouts, [b.rollouts for b in before], **_TARGETS),
        tuple(f"estimator.terms.entropy.weight.{name}={value}" for name, value in _TARGETS.items()),
    ),
    "adaptive_kl": Invention(
        lambda p, chance, before: textbook.adaptive_kl(p.rollouts, [b.rollouts for b in before], 0.3, 0.5),
        ("estimator.shaping.start=0.3", "estimator.shaping.target=0.5"),
    ),
    "token_switch": Invention(lambda p, chance, before: textbook.token_switch(p, 0.8)),
    "slow_kl": Invention(
        lambda p, chance, before: of_fields.pulled_to_average(p.rollouts, _own(p, chance).fields["slow"], 0.04)
    ),
    "distillation": Invention(
        lambda p, chance, before: of_fields.reinforced_distillation(
            p.rollouts, _own(p, chance).fields["teacher"], 0.1, 0.05
        )
    ),
    "self_distillation": Invention(
        lambda p, chance, before: of_fields.self_distilled(p.rollouts, _own(p, chance).fields["hinted"]), clipped=()
    ),
    "success_distillation": Invention(
        lambda p, chance, before: of_fields.self_distilled(p.rollouts, _own(p, chance).fields["hinted"]), clipped=()
    ),
    "judge": Invention(
        lambda p, chance, before: of_fields.judged(p.rollouts, _own(p, chance).fields["judge"], 0.1),
    ),
    "gdpo": Invention(
        lambda p, chance, before: of_fields.decoupled(
            p.rollouts, [p.rollouts.reward, _own(p, chance).fields["format"]], [1.0, 0.5], whiten=True
        )
    ),
    "gdpo, as it was summed": Invention(
        lambda p, chance, before: of_fields.decoupled(
            p.rollouts, [p.rollouts.reward, _own(p, chance).fields["format"]], [1.0, 0.5]
        ),
        ("estimator.terms.rl.advantage.whiten=false",),
    ),
    "median_gate": Invention(
        lambda p, chance, before: of_fields.remembered(p, chance.fields["history"], 0.25, 96.0),
    ),
    "segments": Invention(
        lambda p, chance, before: of_fields.segmented(
            p.rollouts, _own(p, chance).fields["equals"], 1, _own(p, chance).fields["format"], p.rollouts.reward
        )
    ),
}
STATEFUL = ("entropy_controller", "adaptive_kl")
RECIPES = sorted(FOLDER.glob("*.yaml"))


def _own(p: Padded, chance: Chance) -> Chance:
    return chance.of_rows(~p.demonstration)


@cache
def estimator(name: str) -> Estimator:
    """That of the YAML, with the textbook's numbers."""
    path = FOLDER / f"{name.partition(',')[0]}.yaml"
    return upge.load(path, INVENTIONS[name].overrides, allow_code=True).estimator


def textbook_of(name: str, batch: Batch, before: Sequence[Batch] = ()) -> Callable[[Padded], Tensor]:
    invention = INVENTIONS[name]
    chance = Chance.of(batch, invention.draws, Padded.of(batch).mask)
    return lambda p: invention.loss(p, chance, [Padded.of(each) for each in before])


def check(name: str, batch: Batch, before: Sequence[Batch] = (), state: State | None = None) -> None:
    """On one rank, at this state, the recipe's gradient is the textbook's."""
    loss = textbook_of(name, batch, before)
    laws.check_gradient(estimator(name), loss, batch, len(before), state)


def check_history(name: str, batches: Sequence[Batch]) -> None:
    """So it is for the last of several rollout batches, in the state that those before it leave."""
    state = estimator(name).initial()
    for step, batch in enumerate(batches[:-1]):
        state = estimator(name).credit(batch, step, state=state).state
    check(name, batches[-1], batches[:-1], state)


def check_on_ranks(name: str, batch: Batch, seed: int, *, ranks: int = 2, pieces: int = 3) -> None:
    """So it is in micro-batches on several ranks, of which one may have no rows."""
    whole = fresh(batch)
    random = torch.Generator().manual_seed(seed)
    rank_of, piece_of = (
        torch.randint(0, count, (max(batch.prompts, 1),), generator=random)[batch.prompt] for count in (ranks, pieces)
    )
    shares = [whole.select(rank_of == rank) for rank in range(ranks)]

    def counted(rank: int, reduce: Any) -> Any:
        return estimator(name).count(shares[rank], estimator(name).credit(shares[rank], reduce=reduce), reduce=reduce)

    loss = whole.logp.sum() * 0  # type: ignore[union-attr]
    for rank, credit in enumerate(laws.lockstep(ranks, counted)):
        for piece in range(pieces):
            rows = piece_of[rank_of == rank] == piece
            loss = loss + estimator(name).weigh(shares[rank].select(rows), credit.select(shares[rank], rows)).loss
    leaf = fresh(batch)
    wanted = laws.gradient_of(textbook_of(name, batch)(Padded.of(leaf)), leaf)
    laws.assert_same(laws.gradient_of(loss, whole), wanted, batch, f"the gradient on {ranks} ranks")


def decided(name: str, batch: Batch) -> bool:
    """Whether the batch is on no kink of the textbook's loss."""
    invention = INVENTIONS[name]
    kinked = laws.reaches_a_kink(lambda p: (p.logp - p.old_logp).exp()[p.mask], invention.clipped, batch)
    return not kinked and not invention.undecided(Padded.of(batch))


# The gradient.


def test_every_recipe_has_a_textbook() -> None:
    assert {path.stem for path in RECIPES} == {name.partition(",")[0] for name in INVENTIONS}


@pytest.mark.parametrize("name", INVENTIONS)
@pinned
@given(cases())
def test_the_gradient_is_the_textbooks(name: str, case: Case) -> None:
    batch = fielded(case.batch)
    assume(decided(name, batch))
    check(name, batch)


@pytest.mark.parametrize("name", INVENTIONS)
@given(case=cases(), seed=st.integers(0, 2**16))
def test_it_is_so_on_two_ranks_in_micro_batches(name: str, case: Case, seed: int) -> None:
    batch = fielded(case.batch)
    assume(decided(name, batch))
    check_on_ranks(name, batch, seed)


@pytest.mark.parametrize("name", STATEFUL)
@given(several=st.lists(cases(), min_size=2, max_size=4))
def test_after_other_rollout_batches(name: str, several: list[Case]) -> None:
    batches = [case.batch for case in several]
    assume(decided(name, batches[-1]))
    check_history(name, batches)
    laws.check_splitting(estimator(name), batches[-1], ranks=2, pieces=3, seed=5, step=2)


def test_of_many_tokens_clip_cov_drops_its_share() -> None:
    name, batch = "clip_cov, as it comes", LONG.batch
    check(name, batch)
    check_on_ranks(name, batch, 1)
    block = upge.load(FOLDER / "clip_cov.yaml", ["estimator.terms.rl.mask.1.share=1e-3"], allow_code=True).estimator
    mask = block.weigh(batch, block.count(batch, block.credit(batch))).terms["rl"].mask
    clipped = upge.load(FOLDER / "clip_cov.yaml", ["estimator.terms.rl.mask.1=none"], allow_code=True).estimator
    before = clipped.weigh(batch, clipped.count(batch, clipped.credit(batch))).terms["rl"].mask
    assert int(((mask == 0) & (before != 0)).sum()) == int(batch.length[~batch.demonstration].sum() * 1e-3) == 8


# The textbooks can fail.

MUTANTS: list[tuple[str, str, str, str]] = [
    ("it draws among what the clip has left out", "clip_cov", " & (b.mask != 0))", ")"),
    ("it draws among all tokens", "clip_cov", "(cov > self.low) & (cov < self.high)", "(cov == cov)"),
    ("the log-probs are not centred", "clip_cov", "(b.logp - b.total(own * b.logp) / tokens)", "b.logp"),
    ("the advantages are not centred", "clip_cov", "(advantage - b.total(own * advantage) / tokens)", "advantage"),
    ("the penalty pushes away", "kl_cov", "-self.coefficient", "self.coefficient"),
    ("the penalty grows with the distance", "kl_cov", "torch.sign(b.logp - b.old_logp)", "(b.logp - b.old_logp)"),
    ("it pulls the smallest covariances", "kl_cov", "b.top(covariance", "b.top(-covariance"),
    ("a pair of one rollout", "online_dpo", "best & ~worst & b.rollout, worst & ~best", "best & b.rollout, worst"),
    ("demonstrations are in pairs", "online_dpo", "x.where(b.rollout, -torch.inf)", "x"),
    ("it pushes pairs that are far apart", "online_dpo", "(-self.beta * b", "(self.beta * b"),
    ("it steers away", "entropy_controller", "self.target - b.total(", "-self.target + b.total("),
    ("the integral is not bounded", "entropy_controller", "error).clamp(-self.limit, self.limit)", "error)"),
    ("demonstrations are measured", "entropy_controller", "own = b.to_tokens(b.rows)", "own = b.noise >= 0"),
    ("the coefficient jumps", "adaptive_kl", ".clamp(-0.2, 0.2)", ".clamp(-0.2, 0.3)"),
    ("the divergence of a token", "adaptive_kl", "b.total(b.rollout)", "b.total(b.to_tokens(b.rollout))"),
    ("a reward for divergence", "adaptive_kl", "-b.state", "b.state"),
    (
        "each source has its own quantile",
        "token_switch",
        "where=torch.ones_like(b.entropy, dtype=torch.bool)",
        "where=None",
    ),
    ("every weight is 1", "gdpo", "weight * part(b)", "part(b)"),
    ("the mean stays", "gdpo", "centred = total - ", "centred = total - 0 * "),
    ("demonstrations are whitened", "gdpo", "own = b.to_tokens(b.rows)", "own = b.noise >= 0"),
    ("a biased variance", "gdpo", "(count - 1)", "count"),
    ("the gate opens at its threshold", "median_gate", "median > self", "median >= self"),
    (
        "the gate is the mean",
        "median_gate",
        "torch.nanquantile(numbers.reshape(len(numbers), -1), 0.5, dim=1)",
        "torch.nanmean(numbers.reshape(len(numbers), -1), dim=1)",
    ),
    ("the opinion is a sum", "judge", " / b.length.clamp(min=1)", ""),
    ("every token has the opinion", "judge", "b.at_last(mean)", "b.to_tokens(mean)"),
    ("the marked token is of the second segment", "segments", " - b.to_go(marks)", " - b.to_go(marks) + marks"),
    ("the segments are swapped", "segments", "self.then(b), self.first(b)", "self.first(b), self.then(b)"),
    ("the last mark divides", "segments", "before > 0.5", "b.to_go(marks) - marks < 0.5"),
    ("the sure are imitated", "token_switch", 'self.side == "above"', 'self.side == "below"'),
]


def checks(recipe: str) -> Iterator[Callable[[], None]]:
    """A fixed few of the property tests' examples."""
    for name in (name for name in INVENTIONS if name.partition(",")[0] == recipe):
        batches = [fielded(case.batch) for case in (RICH, *PINNED, *seeded(24)) if decided(name, case.batch)]
        yield from (partial(check, name, batch) for batch in batches)
        if recipe in STATEFUL:
            yield from (partial(check_history, name, batches[i : i + 5]) for i in range(len(batches) - 5))


def dies(recipe: str) -> bool:
    for each in checks(recipe):
        try:
            each()
        except Exception:
            return True
    return False


@pytest.mark.parametrize("recipe", dict.fromkeys(recipe for _, recipe, _, _ in MUTANTS))
def test_the_parts_as_they_are_survive(recipe: str) -> None:
    assert not dies(recipe)


@pytest.mark.parametrize(("name", "recipe", "old", "new"), spread(MUTANTS, lambda row: row[1]))
def test_a_wrong_version_of_a_part_is_noticed(name: str, recipe: str, old: str, new: str) -> None:
    with Mutant(name, module_in(FOLDER / f"{recipe}.py").__name__, old, new).alive():
        assert dies(recipe)


# The parts.

GIVEN: dict[str, dict[str, Any]] = {
    "KlCov": {"of": "group_norm"},
    "Sum": {"of": ("group_norm", "reward"), "weights": (1.0, 0.5)},
    "Segments": {"first": "group_norm", "then": "reward"},
}
"""What no parameter's bounds tell."""


def parts_of(recipe: Path) -> list[type[Part]]:
    """The classes in the file beside a recipe that are parts of their own."""
    file = recipe.with_suffix(".py")
    kinds = vars(module_in(file)).values() if file.is_file() else ()
    return [
        kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Part) and "upge_file" in kind.__module__
    ]


PARTS = [kind for recipe in RECIPES for kind in parts_of(recipe)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_adds_two_parts_at_most_of_twenty_lines_that_name_no_recipe(recipe: Path) -> None:
    kinds = parts_of(recipe)
    assert len(kinds) <= 2
    for kind in kinds:
        assert len(code_lines(kind)) <= 20, kind
        assert not {path.stem for path in RECIPES} & set(kind.model_fields)


def code_lines(kind: type[Part]) -> list[int]:
    """The lines of a class with code on them, without its documentation."""
    (body,) = ast.parse(inspect.getsource(kind)).body
    assert isinstance(body, ast.ClassDef)
    code = [node for node in body.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    return [1, *(line for node in code for line in range(node.lineno, 1 + (node.end_lineno or 0)))]


@pytest.mark.parametrize("kind", spread(PARTS, lambda kind: "part"), ids=lambda kind: kind.__name__)
def test_every_part_passes_upge_check(kind: type[Part]) -> None:
    check_part(kind, examples=10, **GIVEN.get(kind.__name__, {}))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_passes_upge_check(recipe: Path) -> None:
    check_estimator(upge.load(recipe, allow_code=True).estimator, examples=5)


# The run.


@pytest.mark.parametrize(
    "recipe", spread(RECIPES, lambda path: path.with_suffix(".py").is_file()), ids=lambda p: p.stem
)
def test_every_recipe_runs_on_the_lab(recipe: Path, tmp_path: Path) -> None:
    small = ["train.steps=3", "train.prompts=4", "rollout.n=4", "eval.splits=[]", f"log.folder={tmp_path / 'run'}"]
    upge.train(upge.load(recipe, small, allow_code=True))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["phase"] == "train"] == [0, 1, 2]
    assert all(line["grad_norm"] > 0 for line in lines if line["phase"] == "train")
