"""pass@k, majority votes and intervals, against closed forms, brute force and known cases."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import combinations
from statistics import fmean

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from upge.errors import InputError
from upge.evaluate.measurement import measure
from upge.evaluate.scores import Record, bootstrap, majority, pass_at_k, places
from upge.types import Problem, Trajectory


def closed_form(n: int, right: int, k: int) -> float:
    return float(1 - Fraction(math.comb(n - right, k), math.comb(n, k)))


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_right_one(n: int) -> None:
    for right in range(n + 1):
        for k in range(1, n + 1):
            subsets = list(combinations([True] * right + [False] * (n - right), k))
            assert pass_at_k(n, right, k) == pytest.approx(fmean(map(any, subsets)), rel=1e-12)


@pytest.mark.parametrize("right", [0, 1, 2, 10, 500, 1023, 1024, 1025, 2047, 2048])
@pytest.mark.parametrize("k", [1, 2, 8, 64, 1023, 1024])
def test_pass_at_1024_of_2048_samples_is_exact(right: int, k: int) -> None:
    assert pass_at_k(2048, right, k) == pytest.approx(closed_form(2048, right, k), rel=1e-12, abs=0)


@given(st.integers(1, 2048).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_anywhere(drawn: tuple[int, int, int]) -> None:
    n, right, k = drawn
    assert pass_at_k(n, right, k) == pytest.approx(closed_form(n, right, k), rel=1e-11, abs=0)
    assert pass_at_k(n, right, 1) == pytest.approx(right / n)
    assert pass_at_k(n, right, n) == float(right > 0)


def test_pass_at_k_is_never_minus_zero() -> None:
    assert math.copysign(1, pass_at_k(8, 0, 4)) == 1


@pytest.mark.parametrize(("n", "right", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_of_nonsense(n: int, right: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@"):
        pass_at_k(n, right, k)


@pytest.mark.parametrize(
    ("answers", "right", "value"),
    [
        (["7", "7", "8"], [True, True, False], 1.0),
        (["8", "7", "8"], [False, True, False], 0.0),
        (["7", "8"], [True, False], 0.5),
        (["7", "8", "9", "8", "7"], [False, True, False, True, False], 0.5),
        ([None, None, "7"], [False, False, True], 1.0),
        ([None, None], [False, False], 0.0),
    ],
    ids=["right", "wrong", "tie", "tie of two", "no vote without an answer", "no answer at all"],
)
def test_majority(answers: Sequence[str | None], right: Sequence[bool], value: float) -> None:
    assert majority(answers, right) == value


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    generator, held = np.random.default_rng(0), 0
    for seed in range(200):
        it = bootstrap(generator.beta(0.5, 1.5, size=40).tolist(), seed)  # skewed, as solve rates are; mean 1/4
        held += it.low <= 0.25 <= it.high
    assert 0.90 <= held / 200 <= 0.98


def test_the_interval_is_the_normal_one_for_many_problems() -> None:
    values = np.random.default_rng(1).normal(size=2000)
    it = bootstrap(values.tolist(), 0)
    half = 1.96 * values.std() / math.sqrt(2000)
    assert it.low == pytest.approx(values.mean() - half, abs=half / 20)
    assert it.high == pytest.approx(values.mean() + half, abs=half / 20)


def test_the_interval_is_keyed_by_its_seed() -> None:
    values = [0.0, 0.25, 1.0, 0.5]
    assert bootstrap(values, 3) == bootstrap(values, 3)
    several = np.random.default_rng(2).normal(size=30).tolist()
    assert bootstrap(several, 3) != bootstrap(several, 4)
    assert bootstrap([0.5], 0) == bootstrap([0.5], 1)
    with pytest.raises(ValueError, match="no problems"):
        bootstrap([], 0)


def test_scores_are_by_split_and_band() -> None:
    def response(identity: str, band: str | None, reward: float) -> Trajectory:
        return Trajectory(Problem(identity, "?", "a", band=band), (0,), (1, 2), "", reward, False)

    rewards = {("p10", "easy"): (1.0, 1.0), ("p2", "hard"): (0.0, 1.0), ("p3", None): (0.0, 0.0)}
    scores = measure("test", [response(*key, r) for key, both in rewards.items() for r in both], [2])
    assert scores["test/avg@2"] == pytest.approx(0.5)
    assert scores["test/pass@2"] == pytest.approx(2 / 3)
    assert (scores["test/easy/avg@2"], scores["test/hard/avg@2"], scores["test/hard/pass@2"]) == (1.0, 0.5, 1.0)
    assert scores["test/length"] == 2
    assert not any("maj" in name or "None" in name for name in scores)
    both = [Record("test", "p", "odd", [1.0]), Record("test/odd", "q", None, [0.0])]
    with pytest.raises(InputError, match="'test/odd' is a split, and a band of 'test'"):
        places(both)
