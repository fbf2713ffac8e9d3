"""What came of each problem's responses, and the scores of many problems, in all and by band."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean
from typing import Any

from upge.errors import InputError
from upge.flow import Trajectory
from upge.records.estimates import majority, pass_at_k
from upge.records.metrics import is_finite

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
        own = {key: whole.pop(key) for key in ("split", "id", "band")}
        return own | {"n": self.n, "right": self.right} | {k: v for k, v in whole.items() if v is not None}

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Record:
        """The record in a line of problems.jsonl. Raises KeyError or ValueError where it is none."""
        given = {key: line[key] for key in ("split", "id", "band", "rewards", "truncated")}
        record = cls(**given, lengths=line.get("lengths"), answers=line.get("answers"))
        for name, kinds in _KINDS.items():
            if not isinstance(getattr(record, name), kinds):
                raise ValueError(f"'{name}' is {str(getattr(record, name))[:40]}")
        if not record.rewards or not all(map(is_finite, record.rewards)):
            raise ValueError("'rewards' should be finite numbers")
        for name, kind in (("truncated", bool), ("lengths", int), ("answers", str | None)):
            held = getattr(record, name)
            if held is not None and (len(held) != record.n or not all(isinstance(each, kind) for each in held)):
                raise ValueError(f"'{name}' should have one of its kind for each of 'rewards'")
        return record


def records(split: str, responses: Iterable[Trajectory]) -> list[Record]:
    """The responses to a split by problem, problems in the order in which they first come."""
    found: dict[str, Record] = {}
    for each in responses:
        record = found.setdefault(each.problem.id, Record(split, each.problem.id, each.problem.band))
        record.add(each.reward, each.truncated, len(each.response))
    return list(found.values())


def places(found: Sequence[Record]) -> dict[str, list[Record]]:
    """The records by where they were measured: `<split>`, then its bands, `<split>/<band>`, for each split."""
    grouped: dict[str, list[Record]] = {}
    for split in dict.fromkeys(each.split for each in found):
        members = [each for each in found if each.split == split]
        grouped[split] = members
        for band in sorted({each.band for each in members if each.band is not None}):
            if any(each.split == f"{split}/{band}" for each in found):
                raise InputError(
                    f"eval.splits: '{split}/{band}' is a split, and a band of '{split}': rename one of them"
                )
            grouped[f"{split}/{band}"] = [each for each in members if each.band == band]
    return grouped


def columns(found: Sequence[Record], pass_at: Sequence[int]) -> dict[str, list[float]]:
    """Score → its value for each problem: `avg@n`, `pass@k`, `maj@n` where there are answers, `truncated`, `length`."""
    if not found:
        return {}
    n = min(each.n for each in found)
    scores = {f"avg@{n}": [fmean(each.rewards) for each in found]}
    for k in pass_at:
        scores[f"pass@{k}"] = [pass_at_k(each.n, each.right, k) for each in found]
    if all(each.answers is not None for each in found):
        scores[f"maj@{n}"] = [majority(each.answers or (), [r > 0 for r in each.rewards]) for each in found]
    scores["truncated"] = [fmean(each.truncated) for each in found]
    if all(each.lengths is not None for each in found):
        scores["length"] = [fmean(each.lengths or ()) for each in found]
    return scores
