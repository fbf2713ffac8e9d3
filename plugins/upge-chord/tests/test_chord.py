"""CHORD's recipes have the gradient that the paper prints, its part keeps the laws, and wrong versions are noticed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from chord_textbook import chord, mu_at
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

import upge
from upge.testing import Case, Padded, Prompt, cases, check_estimator, check_gradient, check_part, reaches_a_kink
from upge_chord import chord_phi
from upge_chord.chord_phi import ChordPhi

PINNED = (
    Case(()),
    Case((Prompt(1),)),  # a group of one
    Case((Prompt(2), Prompt(3, 1)), old="none", interleaved=True),  # strictly on-policy
    Case((Prompt(3, 1, "right"), Prompt(2, 2, "wrong"))),  # no signal from rollouts
    Case((Prompt(0, 2), Prompt(0, 1)), longest=6),  # demonstrations alone
    Case((Prompt(6, 1, "wild"), Prompt(2, 1, "wild")), old="far", longest=6, interleaved=True, seed=1),
    Case((Prompt(4, 2), Prompt(4, 1), Prompt(5)), old="far", longest=6, interleaved=True, seed=2),
)
STEPS = (0, 1, 16, 31, 32, 33, 500)
"""Before, on and after the end of the schedule."""


def pinned(test: Callable[..., None]) -> Callable[..., None]:
    """The test with every pinned case, at the first step, as an explicit example."""
    for case in PINNED:
        test = example(case=case, step=0)(test)
    return test


def holds(name: str, case: Case, step: int, *overrides: str) -> None:
    """Raise AssertionError unless the recipe, with overrides, has the gradient of the textbook's loss."""
    mu, weighted = (0.1, True) if name == "chord_phi" else (mu_at(step), False)
    estimator = upge.load(name, overrides).estimator
    check_gradient(estimator, lambda p: chord(p, mu, weighted), case.batch, step)


def ratio(p: Padded) -> Tensor:
    """Of every token."""
    return torch.exp(p.logp - p.old_logp)[p.mask]


@pytest.mark.parametrize("name", ["chord_mu", "chord_phi"])
@pinned
@example(case=PINNED[-1], step=32)
@given(case=cases(), step=st.sampled_from(STEPS))
def test_the_recipe_has_the_papers_gradient(name: str, case: Case, step: int) -> None:
    assume(not reaches_a_kink(ratio, (0.8, 1.2), case.batch))
    holds(name, case, step)


@pytest.mark.parametrize("name", ["chord_mu", "chord_phi"])
def test_the_recipe_keeps_the_laws(name: str) -> None:
    check_estimator(upge.load(name).estimator)


def test_the_part_keeps_the_laws() -> None:
    check_part(ChordPhi)


def test_the_coefficients_sum_to_one_at_every_step() -> None:
    for name in ("chord_mu", "chord_phi"):
        terms = upge.load(name).estimator.terms.values()
        assert all(sum(upge.at(term.weight, step) for term in terms) == pytest.approx(1, abs=1e-15) for step in STEPS)


# The weight, token by token.


def phi(logp: float, dtype: torch.dtype = torch.float64) -> float:
    """What the part makes of one token."""
    batch = upge.Batch(
        logp=torch.tensor([logp], dtype=dtype),
        trajectory=torch.tensor([0]),
        group=torch.tensor([0]),
        demonstration=torch.tensor([True]),
        reward=torch.tensor([1.0], dtype=dtype),
    )
    part = ChordPhi()
    return float(part(upge.View(batch, part.reads())))


def test_the_weight_is_nothing_at_certainty_and_impossibility_and_most_between_them() -> None:
    half = float(torch.log(torch.tensor(0.5, dtype=torch.float64)))
    assert phi(0.0) == 0.0
    assert phi(-torch.inf) == 0.0
    assert phi(half) == pytest.approx(0.25, rel=1e-15)
    assert phi(half + 0.01) < 0.25
    assert phi(half - 0.01) < 0.25


@example(logp=-1e-9)
@given(logp=st.floats(-30, 0))
def test_the_weight_is_that_of_double_precision_in_single_precision_too(logp: float) -> None:
    rounded = float(torch.tensor(logp, dtype=torch.float32))
    assert phi(rounded, torch.float32) == pytest.approx(phi(rounded), rel=1e-6, abs=1e-37)


# Wrong versions: each is noticed by the gradient's check.


@upge.register("mean_over_padding")
class MeanOverPadding(upge.Reduction):
    """1/(rows · the longest row)."""

    def __call__(self, b: upge.View) -> Tensor:
        return 1 / (b.rows.sum() * max(b.length.tolist(), default=0)).clamp(min=1)


WRONG_RECIPES: dict[str, tuple[str, ...]] = {
    "the demonstrations repel": ("estimator.terms.sft.weight=-0.1",),
    "imitation at full weight": ("estimator.terms.sft.weight=1.0",),
    "exploration at full weight": ("estimator.terms.rl.weight=1.0",),
    "a mean over padding": ("estimator.terms.sft.reduction=mean_over_padding",),
    "a mean over padding of rollouts": ("estimator.terms.rl.reduction=mean_over_padding",),
    "a mean over demonstrations": ("estimator.terms.sft.reduction=sequence_mean",),
    "no clip": ("estimator.terms.rl.mask=null",),
    "another clip": ("estimator.terms.rl.mask.high=0.28",),
    "the probability is in the gradient": ("estimator.terms.sft.denominator=one",),
    "both streams count together": ("estimator.terms.sft.count_with=rl",),
}
WRONG_PHI: dict[str, tuple[str, str]] = {
    "the wrong sign": ("* -b", "* b"),
    "the probability alone": (" * -b.logp.expm1()", ""),
    "what is unlikely alone": ("b.logp.exp() * -", "-"),
    "the log-probability for the probability": ("b.logp.exp()", "b.logp"),
    "squared": ("b.logp.exp()", "b.logp.exp() ** 2"),
    "the other exponential": ("expm1()", "exp()"),
}
SCHEDULES: dict[str, tuple[str, ...]] = {
    "μ stands still": ("estimator.terms.sft.weight=0.9", "estimator.terms.rl.weight=0.1"),
    "μ goes straight": ("estimator.terms.sft.weight.shape=linear", "estimator.terms.rl.weight.shape=linear"),
    "exploration does not grow": ("estimator.terms.rl.weight.end=0.1",),
    "μ never ends": ("estimator.terms.sft.weight.steps=200", "estimator.terms.rl.weight.steps=200"),
}


def is_noticed(name: str, *overrides: str, steps: tuple[int, ...] = (0,)) -> bool:
    """Whether the gradient's check fails on a pinned case."""
    for case in PINNED:
        for step in steps:
            try:
                holds(name, case, step, *overrides)
            except AssertionError:
                return True
    return False


def wrong(old: str, new: str) -> Callable[..., Tensor]:
    """The part's `__call__`, with `new` for `old` in its source."""
    source = inspect.getsource(chord_phi)
    assert source.count(old) == 1, f"the part's module holds {source.count(old)} times: {old}"
    namespace: dict[str, Any] = {"__name__": chord_phi.__name__}
    exec(source.replace(old, new), namespace)
    return namespace["ChordPhi"].__call__


def test_what_is_right_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_noticed("chord_phi", steps=STEPS)
    assert not is_noticed("chord_mu", steps=STEPS)
    monkeypatch.setattr(ChordPhi, "__call__", wrong("* -b.logp.expm1()", "* (1 - b.logp.exp())"))
    assert not is_noticed("chord_phi")


@pytest.mark.parametrize("overrides", WRONG_RECIPES.values(), ids=WRONG_RECIPES)
def test_a_wrong_recipe_is_noticed(overrides: tuple[str, ...]) -> None:
    assert is_noticed("chord_phi", *overrides)


@pytest.mark.parametrize("overrides", SCHEDULES.values(), ids=SCHEDULES)
def test_a_wrong_schedule_is_noticed(overrides: tuple[str, ...]) -> None:
    assert is_noticed("chord_mu", *overrides, steps=STEPS)


@pytest.mark.parametrize(("old", "new"), WRONG_PHI.values(), ids=WRONG_PHI)
def test_a_wrong_weight_is_noticed(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ChordPhi, "__call__", wrong(old, new))
    assert is_noticed("chord_phi")
