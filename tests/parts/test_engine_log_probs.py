"""The engine's log-probs: demonstrations have none, and over a cut distribution they move the ratio away from 1."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny

import upge
from upge.estimator.batch import Batch
from upge.estimator.estimator import Estimator
from upge.recipe import RecipeError, trials
from upge.testing.batches import Case, Prompt, fresh
from upge.train import cautions
from upge.train.metrics import StepMetrics, worth

RL: dict[str, Any] = tiny.HYBRID["terms"]["rl"]  # type: ignore[index]
SFT: dict[str, Any] = tiny.HYBRID["terms"]["sft"]  # type: ignore[index]
CLIP: dict[str, Any] = RL["mask"]
TIS = {"use": "truncated_importance", "cap": 2.0}
KEPT = {"source": "kept", "denominator": "rollout", "advantage": "one", "reduction": "token_mean"}


class _Own(upge.Shaping):
    """What a rollout costs by the engine's log-probs; and, where asked, what a demonstration does."""

    needs = frozenset({"rollout_logp"})
    shown: bool = False

    def __call__(self, b: upge.View) -> torch.Tensor:
        return b.rollout_logp if self.shown else torch.where(b.to_tokens(b.rollout), b.rollout_logp, 0.0)


def faults(folder: Path, terms: dict[str, Any], **blocks: Any) -> list[tuple[str, str]]:
    """What is said of a recipe of these terms."""
    try:
        upge.load(tiny.recipe(folder, estimator={"terms": terms}, **blocks))
    except RecipeError as error:
        return [(fault.message, fault.hint or "") for fault in error.faults]
    return []


@pytest.mark.parametrize(
    ("terms", "part"),
    [
        ({"sft": SFT | {"denominator": "rollout"}}, "rollout"),
        ({"sft": SFT | {"mask": CLIP | {"against": "rollout"}}}, "clip"),
        ({"sft": SFT | {"mask": {"use": "cap", "ratio_max": 5.0, "against": "rollout"}}}, "cap"),
        ({"all": RL | {"source": "all", "denominator": "rollout"}}, "rollout"),
        ({"rl": RL, "sft": SFT, "kept": KEPT}, "rollout"),
    ],
)
def test_what_reads_of_demonstrations_what_no_engine_said_is_refused(
    tmp_path: Path, terms: dict[str, Any], part: str
) -> None:
    ((message, hint),) = faults(tmp_path, terms)
    assert message == f"{part} reads rollout_logp of demonstrations, which no engine drew"
    assert ("doesn't read it" in hint) == (list(terms) == ["sft"])


@pytest.mark.parametrize(
    "terms",
    [
        {"rl": RL | {"denominator": "rollout"}, "sft": SFT},
        {"rl": RL, "kept": KEPT},
        {"sft": SFT | {"mask": TIS}},
        {"all": RL | {"source": "all", "mask": [CLIP, TIS | {"level": "sequence"}]}},
    ],
)
def test_rollouts_alone_and_masks_that_treat_demonstrations_apart_may_read_it(
    tmp_path: Path, terms: dict[str, Any]
) -> None:
    assert faults(tmp_path, terms) == []


def test_whatever_the_slot_it_is_what_a_part_computes_that_counts() -> None:
    assert trials.reads_of_demonstrations(_Own(shown=True))
    assert not trials.reads_of_demonstrations(_Own())


NUCLEUS = {"rollout": {"top_p": 0.8}}


def test_the_advice_for_a_nucleus_leads_to_a_recipe_that_drops_nothing_of_an_unchanged_policy(tmp_path: Path) -> None:
    ((message, hint),) = faults(tmp_path, {"rl": RL}, **NUCLEUS)
    assert message == "rollouts cut by top_p are not samples of the policy that is trained"
    assert "`denominator: rollout`" in hint
    assert "its mask 0 `against: old`" in hint
    assert "tokens outside the cut are never drawn either way" in hint
    ((message, hint),) = faults(tmp_path, {"rl": RL | {"denominator": "rollout"}}, **NUCLEUS)
    assert message.startswith("clip drops tokens of an unchanged policy")
    assert hint == "give it `against: old`"
    advised = RL | {"denominator": "rollout", "mask": CLIP | {"against": "old"}}
    assert faults(tmp_path, {"rl": advised}, **NUCLEUS) == []
    assert faults(tmp_path, {"all": RL | {"source": "all"}}, **NUCLEUS)[0][1].startswith(
        "remove it, or give rollouts a term of their own"
    )


@pytest.mark.parametrize("strictly", [True, False])
def test_its_gradient_is_that_of_the_same_recipe_without_a_mask(*, strictly: bool) -> None:
    batch = Case((Prompt(4, 1), Prompt(6, 0, "wild")), seed=4).batch
    assert batch.logp is not None
    mass = torch.linspace(0.8, 1.0, len(batch.logp), dtype=torch.float64)
    nucleus = replace(batch, old_logp=None if strictly else batch.logp, rollout_logp=batch.logp - mass.log())

    def gradient(mask: list[dict[str, Any]]) -> torch.Tensor:
        term = RL | {"denominator": "rollout", "mask": mask, "reduction": "token_mean"}
        leaf = fresh(nucleus)
        Estimator.model_validate({"terms": {"rl": term}}).loss(leaf).backward()
        assert leaf.logp is not None
        assert leaf.logp.grad is not None
        return leaf.logp.grad

    tight = CLIP | {"low": 0.01, "high": 0.01}
    assert bool((gradient([]) != 0).any())
    assert torch.equal(gradient([tight | {"against": "old"}]), gradient([]))
    assert not torch.equal(gradient([tight]), gradient([]))


@pytest.mark.parametrize(
    ("estimator", "silent"),
    [
        (tiny.HYBRID, ["rl"]),
        ({"terms": {"rl": RL | {"advantage": "leave_one_out"}}}, ["rl"]),
        ({"terms": {"rl": RL | {"advantage": "signed"}}}, []),
        ({"terms": {"rl": RL | {"advantage": "batch_norm"}}}, []),
        ({"terms": {"rl": RL | {"advantage": {"use": "group_norm", "over": "all"}}, "sft": SFT}}, []),
        ({"terms": {"rl": RL | {"advantage": "signed"}}, "switch": {"use": "informative", "keep": "rl"}}, ["rl"]),
    ],
)
def test_a_group_of_one_that_teaches_nothing_is_told(tmp_path: Path, estimator: Any, silent: list[str]) -> None:
    path = tiny.recipe(tmp_path, estimator=estimator)
    assert cautions.before(upge.load(path)) == []
    said = cautions.before(upge.load(path, ["rollout.n=1"]))
    assert [name for name in ("rl", "sft") if any(f"'{name}' learns nothing" in each for each in said)] == silent


def test_a_batch_of_one_rollout_is_whitened_to_nothing(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path, estimator={"terms": {"rl": RL | {"advantage": "batch_norm"}}})
    assert cautions.before(upge.load(path, ["rollout.n=1", "train.prompts=1"]))


def clamped(mask: list[dict[str, Any]], advantage: str = "reward") -> dict[str, float]:
    """The metrics of a batch of three tokens, whose log-ratios are 25, −25 and 1 nats."""
    logp = torch.tensor([-1.0, -26.0, -1.0])
    old = torch.tensor([-26.0, -1.0, -2.0])
    batch = Batch(logp, torch.arange(3), torch.arange(3), torch.zeros(3, dtype=torch.bool), -torch.ones(3), old)
    term = RL | {"mask": mask, "advantage": advantage, "reduction": "token_mean"}
    estimator = Estimator.model_validate({"terms": {"rl": term}})
    tally = StepMetrics(["rl"], lambda x: x)
    tally.weighed(batch, estimator.weigh(batch, estimator.count(batch, estimator.credit(batch))))
    return tally.reduced()


def test_tokens_at_the_bound_of_the_ratio_are_counted_and_told(tmp_path: Path) -> None:
    assert clamped([])["rl/clamped"] == 1
    assert clamped([CLIP])["rl/clamped"] == 1  # of Â < 0 the clip drops no large ratio
    assert "rl/clamped" not in clamped([{"use": "dual_clip", "low": 0.2, "high": 0.2, "ratio_max": 3.0}])
    assert "rl/clamped" not in clamped([{"use": "cap", "ratio_max": 5.0}])
    assert "rl/clamped" not in worth({"rl/clamped": 0.0})
    recipe, said = upge.load(tiny.recipe(tmp_path)), set[str]()
    line = {"step": 3, "lr": 1e-3} | clamped([])
    (told,) = cautions.during(recipe, line, said)
    assert told.startswith("step 3: 1 tokens of 'rl' have a log-ratio beyond 20 nats")
    assert cautions.during(recipe, line, said) == []
