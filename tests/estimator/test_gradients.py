"""Law 1: an estimator's gradient is the published one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from support.methods import BUDGET, METHODS, Method
from support.part_cases import made
from torch import Tensor

import upge
from upge import Batch, Estimator, View
from upge.testing.batches import EMPTY, PINNED, Case, Prompt
from upge.testing.laws import check_gradient, reaches_a_kink
from upge.testing.strategies import cases


def pinned(test: Callable[..., None]) -> Callable[..., None]:
    """The test with every pinned case as an explicit example."""
    for case in (*PINNED, EMPTY):
        test = example(case)(test)
    return test


def check(method: Method, batch: Batch) -> None:
    """The method's recipe has the gradient of its textbook loss; batches on a kink of that are left out."""
    assume(not reaches_a_kink(method.ratio, method.clipped, batch))
    check_gradient(Estimator.model_validate(method.estimator), method.loss, batch, method.step)


@pytest.mark.parametrize("name", METHODS)
@pinned
@given(cases())
def test_the_gradient_is_the_textbooks(name: str, case: Case) -> None:
    check(METHODS[name], case.batch)


SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
OVERRIDES = {"dapo": ["estimator.shaping.soft_limit=3"]}
"""What the textbook's table sets so that short trajectories meet it."""


def of(stem: str) -> list[Method]:
    """The table's entries for a shipped recipe: its own, and those of its later steps."""
    return [METHODS[name] for name in METHODS if name in (stem, f"{stem}, later")]


@pytest.mark.parametrize("recipe", SHIPPED, ids=lambda path: path.stem)
@pinned
@given(cases())
def test_every_shipped_recipe_has_the_textbooks_gradient(recipe: Path, case: Case) -> None:
    """The YAML itself, with the completion budget that the textbook's table has."""
    overrides = [f"rollout.max_tokens={BUDGET}", *OVERRIDES.get(recipe.stem, [])]
    estimator = upge.load(recipe, overrides).estimator
    assert of(recipe.stem)
    for method in of(recipe.stem):
        check(replace(method, estimator=estimator.model_dump()), case.batch)


def one_token(ratio: float, advantage: float, mask: dict[str, Any]) -> float:
    """What a mask makes of one token whose ratio and advantage are given exactly."""
    batch = Batch(
        logp=torch.tensor([-1.0], dtype=torch.float64),
        trajectory=torch.tensor([0]),
        group=torch.tensor([0]),
        demonstration=torch.tensor([False]),
        reward=torch.tensor([1.0], dtype=torch.float64),
    )
    known = {name: torch.tensor([x], dtype=torch.float64) for name, x in (("ratio", ratio), ("advantage", advantage))}
    part = made("mask", mask)
    return float(part(View(batch, part.reads(), known=known)))  # type: ignore[operator]


def surrogate_gradient(ratio: float, advantage: float, low: float, high: float) -> float:
    """d/dρ min(ρÂ, clip(ρ)Â) at a ratio given exactly, as autograd has it."""
    leaf = torch.tensor(ratio, dtype=torch.float64, requires_grad=True)
    torch.min(leaf * advantage, torch.clamp(leaf, 1 - low, 1 + high) * advantage).backward()
    assert isinstance(leaf.grad, Tensor)
    return float(leaf.grad)


BOUNDS = [(0.2, 0.2), (0.2, 0.28), (0.0, 0.0), (1.0, 0.5), (0.1, 4.0)]


def just_above(x: float) -> float:
    return float(torch.nextafter(torch.tensor(x, dtype=torch.float64), torch.tensor(torch.inf, dtype=torch.float64)))


def just_below(x: float) -> float:
    return float(torch.nextafter(torch.tensor(x, dtype=torch.float64), torch.tensor(-torch.inf, dtype=torch.float64)))


@pytest.mark.parametrize(("low", "high"), BOUNDS)
def test_clip_keeps_the_gradient_at_its_bounds_and_drops_it_just_beyond(low: float, high: float) -> None:
    clip = {"use": "clip", "low": low, "high": high}
    assert one_token(1 + high, +1.0, clip) == 1.0
    assert one_token(just_above(1 + high), +1.0, clip) == 0.0
    assert one_token(1 - low, -1.0, clip) == 1.0
    assert one_token(just_below(1 - low), -1.0, clip) == 0.0


@pytest.mark.parametrize(("low", "high"), BOUNDS)
@pytest.mark.parametrize("advantage", [-2.0, -1e-12, 0.0, 1e-12, 2.0])
def test_clip_is_the_surrogates_derivative_on_and_around_every_bound(low: float, high: float, advantage: float) -> None:
    for bound in (1 - low, 1.0, 1 + high):
        for ratio in (just_below(bound), bound, just_above(bound), bound / 2 + 1e-3, bound * 2):
            if ratio < 1e-300:
                continue  # ratios are positive
            kept = one_token(ratio, advantage, {"use": "clip", "low": low, "high": high})
            assert kept * advantage == surrogate_gradient(ratio, advantage, low, high)


def test_clip_only_ends_the_push_on_the_side_it_is_pushed_to() -> None:
    clip = {"use": "clip", "low": 0.2, "high": 0.2}
    assert one_token(0.1, +1.0, clip) == 1.0
    assert one_token(9.0, -1.0, clip) == 1.0
    assert one_token(9.0, 0.0, clip) == 1.0


def test_dual_clip_keeps_the_gradient_at_its_third_bound_and_drops_it_just_beyond() -> None:
    dual = {"use": "dual_clip", "low": 0.2, "high": 0.2, "ratio_max": 3.0}
    assert one_token(3.0, -1.0, dual) == 1.0
    assert one_token(just_above(3.0), -1.0, dual) == 0.0
    assert one_token(just_above(3.0), 0.0, dual) == 1.0
    assert one_token(1.2, +1.0, dual) == 1.0
    assert one_token(just_above(1.2), +1.0, dual) == 0.0
    assert one_token(just_below(0.8), -1.0, dual) == 0.0


@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_cap_bounds_the_weight_and_keeps_every_gradient(advantage: float) -> None:
    for ratio in (1e-8, 0.5, 1.0, 5.0, just_above(5.0), 80.0):
        weight = ratio * one_token(ratio, advantage, {"use": "cap", "ratio_max": 5.0})
        assert weight == pytest.approx(min(ratio, 5.0), rel=1e-15)
    assert one_token(5.0, advantage, {"use": "cap", "ratio_max": 5.0}) == 1.0


def test_cis_mask_drops_what_is_pushed_beyond_its_bounds_and_caps_the_rest() -> None:
    cis = {"use": "cis_mask", "low": 0.2, "high": 0.5}
    assert one_token(1.5, +1.0, cis) == 1.0
    assert one_token(just_above(1.5), +1.0, cis) == 0.0
    assert one_token(3.0, -1.0, cis) == 0.5
    assert one_token(0.8, -1.0, cis) == 1.0
    assert one_token(just_below(0.8), -1.0, cis) == 0.0
    assert one_token(0.1, +1.0, cis) == 1.0


@pytest.mark.parametrize(
    ("scores", "gate", "explored"),
    [
        ([1.0, 0.0, 0.0, 0.0], 0.25, False),
        ([1.0, 1.0, 0.0, 0.0], 0.25, True),
        ([0.0, 0.0], 0.0, False),
        ([0.0, 1e-6], 0.0, True),
        ([0.1, 0.1, 0.1], 0.1, False),  # their mean is 0.10000000000000002
        ([0.1, 0.1, 0.1, 0.3], 0.15, False),
        ([0.1, 0.1, 0.1, 0.3001], 0.15, True),
    ],
)
def test_the_gate_is_closed_at_its_threshold_and_open_just_above(
    scores: list[float], gate: float, explored: bool
) -> None:
    batch = Batch(
        logp=torch.zeros(len(scores), dtype=torch.float64),
        trajectory=torch.arange(len(scores)),
        group=torch.zeros(len(scores), dtype=torch.int64),
        demonstration=torch.zeros(len(scores), dtype=torch.bool),
        reward=torch.tensor(scores, dtype=torch.float64),
    )
    part = made("switch", {"use": "success_rate", "threshold": gate, "above": "rl", "otherwise": "sft"})
    coefficients = part(View(batch, part.reads()))  # type: ignore[operator]
    assert (coefficients["rl"].tolist(), coefficients["sft"].tolist()) == ([float(explored)], [float(not explored)])


def shaped(length: int, soft_limit: int, limit: int) -> list[float]:
    """What `overlong` adds to the tokens of a rollout of this length."""
    batch = Batch(
        logp=torch.zeros(length, dtype=torch.float64),
        trajectory=torch.zeros(length, dtype=torch.int64),
        group=torch.tensor([0]),
        demonstration=torch.tensor([False]),
        reward=torch.tensor([1.0], dtype=torch.float64),
    )
    part = made("shaping", {"use": "overlong", "soft_limit": soft_limit, "limit": limit})
    return part(View(batch, part.reads())).tolist()  # type: ignore[operator]


@pytest.mark.parametrize(("length", "penalty"), [(1, 0.0), (4, 0.0), (5, -0.25), (7, -0.75), (8, -1.0), (9, -1.0)])
def test_overlong_costs_from_its_soft_limit_and_all_at_its_limit(length: int, penalty: float) -> None:
    assert shaped(length, 4, 8) == [0.0] * (length - 1) + [penalty]


@pytest.mark.parametrize("reward", [0.1, 1.0, 1 / 3])
def test_whitening_a_batch_of_equal_rewards_gives_exactly_nothing(reward: float) -> None:
    batch = Case((Prompt(3), Prompt(6)), longest=6).batch
    for dtype in (torch.float32, torch.float64):
        assert batch.logp is not None
        alike = replace(batch, logp=batch.logp.to(dtype), reward=torch.full_like(batch.reward, reward).to(dtype))
        term = METHODS["reinforce_pp"].estimator["terms"]["rl"]
        advantage = Estimator.model_validate({"terms": {"rl": term}}).credit(alike).terms["rl"].advantage
        assert advantage is not None
        assert bool((advantage == 0).all())


def test_a_group_of_one_has_no_advantage() -> None:
    batch = Case((Prompt(1, 2, "wild"), Prompt(1, 0, "right")), old="far").batch
    for name in ("grpo", "drgrpo", "rloo", "rloo, demonstrations held against rollouts"):
        check_gradient(Estimator.model_validate(METHODS[name].estimator), METHODS[name].loss, batch)
