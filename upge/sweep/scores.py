"""What groups of runs have come to: a number a seed, means over seeds with intervals, and differences by seed."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import cos, isfinite, pi, sin, sqrt, tan
from statistics import fmean, stdev
from typing import Any, Literal

from upge.evaluate.scores import LEVEL, Estimate
from upge.runs.curves import Run
from upge.sweep.groups import Group


def student(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, with Student's interval.

        x̄ ± t_{n−1}·s/√n, with t_{n−1} the number that |t| of n − 1 degrees of freedom exceeds once in twenty

    It supposes that seeds scatter like a normal distribution, and knows that the scatter of five is known badly
    (t_4 = 2.78, where many values would have 1.96). The bootstrap does not: its resamples of five seeds scatter less
    than the seeds by √(4/5), and it holds the true mean about 83 times in 100. Of one value nothing is known: the ends
    are infinite. Units: those of the values. Source: Student, Biometrika 6 (1908). Raises ValueError for no values.
    """
    if not values:
        raise ValueError("the mean of no seeds")
    mean, n = fmean(values), len(values)
    half = quantile(n - 1) * stdev(values) / sqrt(n) if n > 1 else float("inf")
    return Estimate(mean, mean - half, mean + half)


def quantile(freedom: int, level: float = LEVEL) -> float:
    """The t that |t| of so many degrees of freedom stays below with this probability, by bisection of the angle."""
    low, high = 0.0, pi / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if within(middle, freedom) < level else (low, middle)
    return sqrt(freedom) * tan(low)


def within(angle: float, freedom: int) -> float:
    """P(|t| ≤ √ν·tan θ) for ν degrees of freedom: a finite sum.

        ν odd:  2/π·(θ + sin θ·(cos θ + ⅔·cos³θ + … + (2·4⋯(ν−3))/(3·5⋯(ν−2))·cos^{ν−2}θ))
        ν even: sin θ·(1 + ½·cos²θ + … + (1·3⋯(ν−3))/(2·4⋯(ν−2))·cos^{ν−2}θ)

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4. Raises ValueError unless ν ≥ 1.
    """
    if freedom < 1:
        raise ValueError("Student's t needs a degree of freedom: two values at least")
    odd = freedom % 2
    term, total = (cos(angle) if odd else 1.0), 0.0
    for power in range(odd, freedom - 1, 2):
        total += term
        term *= cos(angle) ** 2 * (power + 1) / (power + 2)
    return 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total


def paired(first: dict[int, float], second: dict[int, float]) -> Estimate | None:
    """The mean of second − first over the seeds that both have, with Student's interval; None where they share none.

    Runs of one seed start alike and see the same problems, so their luck cancels, as far as they share it.
    """
    shared = sorted(first.keys() & second.keys())
    return student([second[seed] - first[seed] for seed in shared]) if shared else None


Points = Sequence[tuple[float, float]]
Against = Literal["samples", "steps"]
"""What a curve is drawn against."""


@dataclass(frozen=True)
class Score:
    """A metric of a group.

    Attributes:
        values: by seed. mean: of them. shared: how many seeds the first group has too.
        difference: of the mean to the first group's, over those seeds; None for the first group itself.
    """

    metric: str
    group: str
    values: dict[int, float]
    mean: Estimate
    shared: int = 0
    difference: Estimate | None = None


def finished(group: Group) -> tuple[Group, list[Run]]:
    """The group without runs that have not come to the recipe's last step, and these."""
    steps = int(group.settings.get("train.steps", 0))
    early = {seed: run for seed, run in group.runs.items() if _steps(run) < steps}
    kept = {seed: run for seed, run in group.runs.items() if seed not in early}
    return Group(group.name, kept, group.settings), list(early.values())


def _steps(run: Run) -> int:
    return sum(line["phase"] == "train" for line in run.lines)


def lasts(groups: Sequence[Group], metrics: Sequence[str]) -> list[Score]:
    """Each metric's last value."""
    return _scores(groups, metrics, last)


def last(run: Run, metric: str) -> float | None:
    """A metric's last value; None where the run has none."""
    curve = run.curve(metric)
    return curve[-1][1] if curve else None


def areas(groups: Sequence[Group], metrics: Sequence[str], against: Against, until: float) -> list[Score]:
    """The mean of each metric over a run's first `until` samples: the area below its curve, divided by them."""
    taken = {id(run): spent(run, group, against) for group in groups for run in group.runs.values()}

    def of(run: Run, metric: str) -> float | None:
        x = taken[id(run)]
        return area([(x[min(int(step), len(x) - 1)], value) for step, value in run.curve(metric)], until)

    return _scores(groups, metrics, of)


def fewest(groups: Sequence[Group], against: Against) -> float:
    """The fewest samples that a run has taken: as far as all curves go."""
    return min(spent(run, group, against)[-1] for group in groups for run in group.runs.values())


def spent(run: Run, group: Group, against: Against) -> list[float]:
    """How many samples, or steps, a run has taken before each step and after the last.

    Samples are trajectories, rollouts and demonstrations, and the n rollouts of each prompt that refilling threw away.
    """
    lines = [line for line in run.lines if line["phase"] == "train"]
    if against == "steps":
        return [float(step) for step in range(len(lines) + 1)]
    n = float(group.settings.get("rollout.n", 0))
    return list(accumulate((line.get("rows", 0) + n * line.get("refill/discarded", 0) for line in lines), initial=0.0))


def area(curve: Points, until: float) -> float | None:
    """The area below straight lines between points from 0 to `until`, divided by `until`; None where they don't reach.

    Units: those of the values.
    """
    if until <= 0 or not curve or curve[0][0] > 0 or curve[-1][0] < until:
        return None
    inside = bisect_left([x for x, _ in curve], until)
    (x, y), (left, below) = curve[inside], curve[inside - 1]
    end = (until, below + (y - below) * (until - left) / (x - left))
    cut = [*curve[:inside], end]
    return sum((b - a) * (u + v) / 2 for (a, u), (b, v) in pairwise(cut)) / until


def exported(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """The scores as plain data, infinite ends as null."""
    return [
        {
            "metric": each.metric,
            "group": each.group,
            "values": {str(seed): value for seed, value in each.values.items()},
            "mean": _plain(each.mean),
            "shared_seeds": each.shared,
            "difference": None if each.difference is None else _plain(each.difference),
        }
        for each in scores
    ]


def _scores(groups: Sequence[Group], metrics: Sequence[str], of: Callable[[Run, str], float | None]) -> list[Score]:
    return [score for metric in metrics for score in _of_metric(groups, metric, of)]


def _of_metric(groups: Sequence[Group], metric: str, of: Callable[[Run, str], float | None]) -> Iterator[Score]:
    """The groups' scores of a metric; a group none of whose runs has it is left out."""
    base: dict[int, float] = {}
    for group in groups:
        found = {seed: of(run, metric) for seed, run in sorted(group.runs.items())}
        values = {seed: value for seed, value in found.items() if value is not None}
        if group is groups[0]:
            base = values
        if values:
            mean, shared = student(list(values.values())), len(base.keys() & values.keys())
            yield Score(metric, group.name, values, mean, shared, None if base is values else paired(base, values))


def _plain(estimate: Estimate) -> dict[str, float | None]:
    bounded = isfinite(estimate.low)
    ends = {"low": estimate.low if bounded else None, "high": estimate.high if bounded else None}
    return {"value": estimate.value, **ends}
