"""What n samples a problem say: pass@k and majority votes, and how sure they are over problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1, fsum, log1p
from statistics import fmean

import numpy as np

LEVEL = 0.95
"""How often an interval should hold the true value."""

RESAMPLES = 10_000
"""Bootstrap resamples of an interval."""

_AT_ONCE = 1 << 20  # numbers drawn from at once: 8 MB of them


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, and the ends of its interval."""

    value: float
    low: float
    high: float


def pass_at_k(n: int, right: int, k: int) -> float:
    """The chance that k of a problem's n samples, `right` of which are right, hold a right one; unbiased.

        pass@k = 1 − C(n − c, k)/C(n, k) = 1 − Π_{i<c} (1 − k/(n − i)) = −expm1(Σ_{i<c} log1p(−k/(n − i)))

    The last form neither overflows (C(2048, 1024) has 616 digits) nor loses small values in a difference to 1.
    Units: a probability. Source: arXiv 2107.03374, eq. 1. Raises ValueError unless 0 ≤ c ≤ n and 1 ≤ k ≤ n.
    """
    if not 0 <= right <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {right} right in {n} samples: it takes 0 ≤ right ≤ n and 1 ≤ k ≤ n")
    if right == 0:
        return 0.0
    if k > n - right:
        return 1.0
    return -expm1(fsum(log1p(-k / (n - i)) for i in range(right)))


def majority(answers: Sequence[str | None], right: Sequence[bool]) -> float:
    """Whether the commonest of a problem's n answers is right: maj@n.

        maj@n = mean of right over the samples whose answer has the most votes

    A sample without an answer casts no vote; where several answers share the most votes, each counts alike, which is
    the mean over all ways to break the tie. Units: a share, 0 … 1. Source: arXiv 2203.11171.
    """
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = {answer for answer, count in votes.items() if count == most}
    return fmean(float(is_right) for answer, is_right in zip(answers, right, strict=True) if answer in winners)


def bootstrap(values: Sequence[float], seed: int) -> Estimate:
    """The mean of one value a problem, with the percentile bootstrap's interval over problems.

    As many problems are drawn with replacement as there are, `RESAMPLES` times; the interval holds the middle `LEVEL`
    of their means. Equal seeds draw the same problems. It speaks of other problems of the same kind, not of other
    samples; of one problem it says nothing (its ends are the value), and of few it is somewhat too narrow.
    Units: those of the values. Source: Efron, The Annals of Statistics 7 (1979). Raises ValueError for no values.
    """
    if not values:
        raise ValueError("the mean of no problems")
    column, generator = np.asarray(values, dtype=np.float64), np.random.default_rng(seed)
    rows = max(1, _AT_ONCE // len(column))
    sizes = [min(rows, RESAMPLES - start) for start in range(0, RESAMPLES, rows)]
    means = [column[generator.integers(len(column), size=(size, len(column)))].mean(axis=1) for size in sizes]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(np.concatenate(means), [tail, 1 - tail])
    return Estimate(fmean(values), float(low), float(high))
