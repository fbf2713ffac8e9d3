"""Scores of many problems, in all and by band, with pass@k, majority votes and their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import expm1, fsum, log1p
from statistics import fmean
from typing import Any

import numpy as np

from upge.errors import InputError
from upge.files import is_finite
from upge.types import Problem, RewardSession, Trajectory

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
    of their means. Equal seeds draw the same problems. The interval is over problems of the same kind, not over
    samples; for one problem its ends are the value, and for few problems it is somewhat too narrow.
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


_KINDS: Mapping[str, tuple[type, ...]] = {"split": (str,), "id": (str,), "band": (str, type(None))} | {
    "rewards": (list,), "truncated": (list,), "lengths": (list, type(None)), "answers": (list, type(None))
}  # fmt: skip


@dataclass
class Record:
    """A problem of a split with its n responses, one value each, in the order of their samples.

    Attributes:
        rewards: the verifier's scores; above 0 is right. truncated: cut at the budget.
        lengths: response tokens; None where they are unknown.
        answers: the final answers as the reward reads them (None where a response has none); None if it offers none.
    """

    split: str
    id: str
    band: str | None = None
    rewards: list[float] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    lengths: list[int] | None = field(default_factory=list)
    answers: list[str | None] | None = field(default_factory=list)

    @property
    def n(self) -> int:
        """How many responses there are."""
        return len(self.rewards)

    @property
    def right(self) -> int:
        """How many of them are right."""
        return sum(reward > 0 for reward in self.rewards)

    def add(self, reward: float, truncated: bool, length: int | None, *answer: str | None) -> None:
        """A further response; without `answer` the reward offers none."""
        self.rewards.append(reward)
        self.truncated.append(truncated)
        if self.lengths is not None and length is not None:
            self.lengths.append(length)
        else:
            self.lengths = None
        if self.answers is not None and answer:
            self.answers.extend(answer)
        else:
            self.answers = None

    def line(self) -> dict[str, Any]:
        """The record as a line of problems.jsonl."""
        whole = asdict(self)
        head = {key: whole.pop(key) for key in ("split", "id", "band")}
        return head | {"n": self.n, "right": self.right} | {k: v for k, v in whole.items() if v is not None}

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Record:
        """The record in a line of problems.jsonl. Raises KeyError or ValueError where it is none."""
        fields = {key: line[key] for key in ("split", "id", "band", "rewards", "truncated")}
        record = cls(**fields, lengths=line.get("lengths"), answers=line.get("answers"))
        for name, kinds in _KINDS.items():
            if not isinstance(getattr(record, name), kinds):
                raise ValueError(f"'{name}' is {str(getattr(record, name))[:40]}")
        if not record.rewards or not all(map(is_finite, record.rewards)):
            raise ValueError("'rewards' should be finite numbers")
        for name, kind in (("truncated", bool), ("lengths", int), ("answers", str | None)):
            held = getattr(record, name)
            if held is not None and (len(held) != record.n or not all(isinstance(value, kind) for value in held)):
                raise ValueError(f"'{name}' should have one of its kind for each of 'rewards'")
        return record


def records(split: str, responses: Iterable[Trajectory]) -> list[Record]:
    """The responses to a split by problem, problems in the order in which they first come."""
    by_problem: dict[str, Record] = {}
    for response in responses:
        record = by_problem.setdefault(response.problem.id, Record(split, response.problem.id, response.problem.band))
        record.add(response.reward, response.truncated, len(response.response))
    return list(by_problem.values())


def places(records: Sequence[Record]) -> dict[str, list[Record]]:
    """The records by where they were measured: `<split>`, then its bands, `<split>/<band>`, for each split."""
    grouped: dict[str, list[Record]] = {}
    for split in dict.fromkeys(record.split for record in records):
        members = [record for record in records if record.split == split]
        grouped[split] = members
        for band in sorted({record.band for record in members if record.band is not None}):
            if any(record.split == f"{split}/{band}" for record in records):
                raise InputError(
                    f"eval.splits: '{split}/{band}' is a split, and a band of '{split}': rename one of them"
                )
            grouped[f"{split}/{band}"] = [record for record in members if record.band == band]
    return grouped


def columns(records: Sequence[Record], pass_at: Sequence[int]) -> dict[str, list[float]]:
    """Score → its value for each problem: `avg@n`, `pass@k`, `maj@n` where there are answers, `truncated`, `length`."""
    if not records:
        return {}
    n = min(record.n for record in records)
    scores = {f"avg@{n}": [fmean(record.rewards) for record in records]}
    for k in pass_at:
        scores[f"pass@{k}"] = [pass_at_k(record.n, record.right, k) for record in records]
    if all(record.answers is not None for record in records):
        scores[f"maj@{n}"] = [majority(record.answers or (), [r > 0 for r in record.rewards]) for record in records]
    scores["truncated"] = [fmean(record.truncated) for record in records]
    if all(record.lengths is not None for record in records):
        scores["length"] = [fmean(record.lengths or ()) for record in records]
    return scores


def answers_in(reward: RewardSession, texts: Sequence[str]) -> list[str | None] | None:
    """The final answer in each response, None where it has none; or None if the reward offers no answers."""
    answer = getattr(reward, "answer", None)
    return [answer(text) for text in texts] if callable(answer) else None


def merged(reward: RewardSession, problem: Problem, answers: Sequence[str | None]) -> list[str | None]:
    """The answers, in place of each the commonest of those that the reward takes for the same."""
    classes = getattr(reward, "classes", None)
    different = [answer for answer, _ in Counter(answer for answer in answers if answer is not None).most_common()]
    if not callable(classes) or len(different) < 2:
        return list(answers)
    class_numbers = classes(problem, different)
    commonest = dict(zip(reversed(class_numbers), reversed(different), strict=True))
    named = {answer: commonest[number] for answer, number in zip(different, class_numbers, strict=True)}
    return [None if answer is None else named[answer] for answer in answers]
