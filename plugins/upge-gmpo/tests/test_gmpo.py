"""GMPO's recipe has the gradient that the paper prints, its part keeps the laws, and wrong versions are noticed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gmpo_textbook
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch import Tensor

import upge
from upge.testing import Case, Padded, Prompt, cases, check_estimator, check_gradient, check_part, reaches_a_kink
from upge_gmpo import geometric_clip
from upge_gmpo.geometric_clip import GeometricClip

PINNED = (
    Case(()),
    Case((Prompt(1),)),  # a group of one
    Case((Prompt(2), Prompt(3, 1)), old="none", interleaved=True),  # strictly on-policy
    Case((Prompt(3, 1, "right"), Prompt(2, 2, "wrong"))),  # advantages of 0 alone
    Case((Prompt(6, 1, "wild"), Prompt(2, 1, "wild")), old="far", longest=6, interleaved=True, seed=1),
    Case((Prompt(4, 2), Prompt(4, 1), Prompt(5)), old="far", longest=6, interleaved=True, seed=2),
)
ADVANTAGES = (-2.0, -1e-12, 0.0, 1e-12, 2.0)


def pinned(test: Callable[..., None]) -> Callable[..., None]:
    """The test with every pinned case as an explicit example."""
    for case in PINNED:
        test = example(case=case)(test)
    return test


def holds(case: Case, *overrides: str) -> None:
    """Raise AssertionError unless the recipe, with overrides, has the gradient of the textbook's loss."""
    check_gradient(upge.load("gmpo", overrides).estimator, lambda p: gmpo_textbook.gmpo(p.rollouts), case.batch)


def ratio(p: Padded) -> Tensor:
    """Of every token."""
    return torch.exp(p.logp - p.old_logp)[p.mask]


@pinned
@given(case=cases())
def test_the_recipe_has_the_papers_gradient(case: Case) -> None:
    assume(not reaches_a_kink(ratio, (math.exp(-0.4), math.exp(0.4)), case.batch))
    holds(case)


def test_the_recipe_keeps_the_laws() -> None:
    check_estimator(upge.load("gmpo").estimator)


def test_the_part_keeps_the_laws() -> None:
    check_part(GeometricClip)


def gradient(name: str, batch: upge.Batch) -> Tensor:
    """Of a recipe's loss with respect to logp."""
    assert batch.logp is not None
    leaf = batch.logp.clone().requires_grad_()
    return torch.autograd.grad(upge.load(name).estimator.loss(replace(batch, logp=leaf)), leaf)[0]


@pinned
@given(case=cases())
def test_on_policy_it_is_grpo(case: Case) -> None:
    batch = replace(case.batch, old_logp=None)
    torch.testing.assert_close(gradient("gmpo", batch), gradient("grpo", batch), rtol=1e-9, atol=1e-12)


# The mask, with log-ratios given exactly.


def masked(log_ratios: list[float], advantage: float, bound: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """(T,) what the part makes of one response over the denominator `sequence`."""
    exact = torch.tensor(log_ratios, dtype=dtype)
    batch = upge.Batch(
        logp=exact.clamp(max=0),  # so that logp − old_logp is the number itself, and neither is above 0
        old_logp=-exact.clamp(min=0),
        trajectory=torch.zeros(len(exact), dtype=torch.int64),
        group=torch.tensor([0]),
        demonstration=torch.tensor([False]),
        reward=torch.tensor([1.0], dtype=dtype),
    )
    known = {
        "advantage": torch.full_like(exact, advantage),
        "ratio": exact.mean().clamp(-20, 20).exp().expand_as(exact),
    }
    part = GeometricClip(log_bound=bound)
    return part(upge.View(batch, part.reads(), known=known))


def around(bound: float) -> list[float]:
    """0, both bounds, and their neighbours."""
    near = (math.nextafter(bound, -math.inf), bound, math.nextafter(bound, math.inf))
    return [0.0, *near, *(-x for x in near)]


def follows_the_surrogate(log_ratios: list[float], advantage: float, bound: float) -> None:
    """Raise AssertionError unless mask · s · Â · 1/|o| is the derivative of the paper's own log-space surrogate."""
    leaf = torch.tensor(log_ratios, dtype=torch.float64, requires_grad=True)
    gmpo_textbook.surrogate(leaf, advantage, bound).backward()
    weight = masked(log_ratios, advantage, bound) * leaf.detach().mean().exp() * advantage / len(log_ratios)
    torch.testing.assert_close(weight, leaf.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("bound", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("advantage", ADVANTAGES)
def test_the_mask_is_the_surrogates_derivative_on_and_around_its_bounds(advantage: float, bound: float) -> None:
    for log_ratio in around(bound):
        follows_the_surrogate([log_ratio], advantage, bound)
        follows_the_surrogate([log_ratio, -1.5, 0.3, 1.5], advantage, bound)


@example(log_ratios=[0.4, -0.4], advantage=1.0)
@example(log_ratios=[0.4, -0.4], advantage=-1.0)
@example(log_ratios=around(0.4), advantage=0.0)
@given(
    log_ratios=st.lists(st.sampled_from(around(0.4)) | st.floats(-19, 19), min_size=1, max_size=6),
    advantage=st.sampled_from(ADVANTAGES),
)
def test_the_mask_is_the_surrogates_derivative(log_ratios: list[float], advantage: float) -> None:
    follows_the_surrogate(log_ratios, advantage, 0.4)


def test_the_gradient_is_kept_at_the_bound_and_ends_just_beyond() -> None:
    beyond = math.nextafter(0.4, 1)
    assert masked([0.4], +1.0, 0.4).tolist() == [1.0]
    assert masked([beyond], +1.0, 0.4).tolist() == [0.0]
    assert masked([-0.4], -1.0, 0.4).tolist() == [1.0]
    assert masked([-beyond], -1.0, 0.4).tolist() == [0.0]


def test_a_token_is_clipped_on_the_side_it_is_pushed_to_only() -> None:
    assert masked([-9.0], +1.0, 0.4).tolist() == [1.0]
    assert masked([+9.0], -1.0, 0.4).tolist() == [1.0]


def test_where_nothing_is_pushed_nothing_is_clipped() -> None:
    assert masked([9.0, -9.0, 0.5], 0.0, 0.4).tolist() == pytest.approx([1.0] * 3, rel=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_ratios_beyond_all_bounds_give_finite_numbers(advantage: float, dtype: torch.dtype) -> None:
    for log_ratios in ([1e4, 1e4], [-1e4, -1e4], [1e4, -1e4], [math.inf], [-math.inf]):
        assert bool(torch.isfinite(masked(log_ratios, advantage, 0.4, dtype)).all())


# Wrong versions: each is noticed.


@upge.register("mean_over_padding")
class MeanOverPadding(upge.Reduction):
    """1/(rows · the longest row)."""

    def __call__(self, b: upge.View) -> Tensor:
        return 1 / (b.rows.sum() * max(b.length.tolist(), default=0)).clamp(min=1)


WRONG_RECIPES: dict[str, str] = {
    "without its mask": "estimator.terms.rl.mask=null",
    "GSPO's clip": "estimator.terms.rl.mask={use: clip, low: 3e-4, high: 4e-4}",
    "GRPO's clip, in log space": "estimator.terms.rl.mask.log_bound=0.2",
    "no deviation": "estimator.terms.rl.advantage=group_mean",
    "a mean over tokens": "estimator.terms.rl.reduction=token_mean",
    "no mean within a response": "estimator.terms.rl.reduction=sequence_sum",
    "a mean over padding": "estimator.terms.rl.reduction=mean_over_padding",
    "demonstrations too": "estimator.terms.rl.source=all",
    "pushed the other way": "estimator.terms.rl.weight=-1.0",
}
WRONG_MASKS: dict[str, tuple[str, str]] = {
    "no bound above": ("log_ratio.clamp(max=self.log_bound)", "log_ratio"),
    "no bound below": ("log_ratio.clamp(min=-self.log_bound)", "log_ratio"),
    "the other side above": ("b.advantage > 0", "b.advantage < 0"),
    "the other side below": ("b.advantage < 0", "b.advantage > 0"),
    "both sides": ("clamp(max=self.log_bound)", "clamp(-self.log_bound, self.log_bound)"),
    "the lower bound is no negative": ("min=-self", "min=self"),
    "a bound on the ratio": ("max=self.log_bound", "max=math.log(1 + self.log_bound)"),
    "the ratio upside down": ('b.log_ratio_to("old")', '-b.log_ratio_to("old")'),
    "the mean before clipping": ("b.per_trajectory(clipped)", "b.per_trajectory(log_ratio)"),
    "the sum for the mean": (" / b.length.clamp(min=1)", ""),
    "a mean over padding": ("b.length.clamp(min=1)", "b.length.clamp(min=max(b.length.tolist(), default=1))"),
    "clipped tokens push on": ("clipped == log_ratio", "clipped == clipped"),
    "one clipped token stops all": (
        "clipped == log_ratio",
        "b.to_tokens(b.per_trajectory((clipped != log_ratio) * 1.0) == 0)",
    ),
    "the ratio counts twice": (" / b.ratio", ""),
}
WRONG_AT_THE_BOUND: dict[str, tuple[str, str]] = {
    "the bound is beyond": ("clipped == log_ratio", "(clipped == log_ratio) & (log_ratio.abs() < self.log_bound)"),
    "a bound in single precision": ("max=self.log_bound", "max=float(torch.tensor(self.log_bound))"),
}


def is_noticed(*overrides: str) -> bool:
    """Whether the gradient's check fails on a pinned case."""
    for case in PINNED:
        try:
            holds(case, *overrides)
        except AssertionError:
            return True
    return False


def wrong(old: str, new: str) -> Callable[..., Tensor]:
    """The part's `__call__`, with `new` for `old` in its source."""
    source = inspect.getsource(geometric_clip)
    assert source.count(old) == 1, f"the part's module holds {source.count(old)} times: {old}"
    namespace: dict[str, Any] = {"__name__": geometric_clip.__name__, "math": math}
    exec(source.replace(old, new), namespace)
    return namespace["GeometricClip"].__call__


def test_what_is_right_is_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_noticed()
    monkeypatch.setattr(GeometricClip, "__call__", wrong("b.advantage > 0", "0 < b.advantage"))
    assert not is_noticed()


@pytest.mark.parametrize("override", WRONG_RECIPES.values(), ids=WRONG_RECIPES)
def test_a_wrong_recipe_is_noticed(override: str) -> None:
    assert is_noticed(override)


@pytest.mark.parametrize(("old", "new"), WRONG_MASKS.values(), ids=WRONG_MASKS)
def test_a_wrong_mask_is_noticed(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GeometricClip, "__call__", wrong(old, new))
    assert is_noticed()


@pytest.mark.parametrize(("old", "new"), WRONG_AT_THE_BOUND.values(), ids=WRONG_AT_THE_BOUND)
def test_a_mask_that_is_wrong_at_its_bound_is_noticed(old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GeometricClip, "__call__", wrong(old, new))
    with pytest.raises(AssertionError):
        test_the_gradient_is_kept_at_the_bound_and_ends_just_beyond()
