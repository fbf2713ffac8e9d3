"""What only one of several runs solves, at the last measurement of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from upge.records.scores import Record
from upge.report.logs import Logs

MOST_PROBLEMS = 200
"""How many problems a page names, at most."""


@dataclass(frozen=True)
class Problem:
    """A problem that only one run solved: its right answers of so many, run by run."""

    id: str
    right: Sequence[tuple[int, int]]
    only: int


@dataclass(frozen=True)
class Solved:
    """Who solved what of a split, at each run's last measurement: counts, and the problems that only one solved."""

    split: str
    problems: int
    by: Sequence[int]
    only: Sequence[int]
    all: int
    none: int
    named: Sequence[Problem]

    @property
    def cut(self) -> bool:
        """There are more such problems than are named."""
        return sum(self.only) > len(self.named)


def ends(logs: Logs) -> dict[str, list[Record]]:
    """Split → the records of the last measurement."""
    found: dict[str, list[Record]] = {}
    measured = logs.responses.measured
    for record in measured[max(measured)].values() if measured else ():
        found.setdefault(record.split, []).append(record)
    return found


def solved(runs: Sequence[Logs]) -> list[Solved]:
    """Of each split that all runs measured, the problems that all of them were asked."""
    found = [ends(each) for each in runs]
    splits = [split for split in found[0] if all(split in own for own in found)]
    tables = {split: [{record.id: record for record in own[split]} for own in found] for split in splits}
    return [_solved_on(split, own) for split, own in tables.items() if set.intersection(*map(set, own))]


def _solved_on(split: str, records: Sequence[Mapping[str, Record]]) -> Solved:
    asked = [each for each in records[0] if all(each in own for own in records)]
    solvers = {each: [i for i, own in enumerate(records) if own[each].right] for each in asked}
    only = [sum(found == [i] for found in solvers.values()) for i in range(len(records))]
    alone = [each for each in asked if len(solvers[each]) == 1]
    alone.sort(key=lambda each: (solvers[each][0], -records[solvers[each][0]][each].right))
    named = [
        Problem(each, [(own[each].right, own[each].n) for own in records], solvers[each][0])
        for each in alone[:MOST_PROBLEMS]
    ]
    return Solved(
        split,
        len(asked),
        by=[sum(i in found for found in solvers.values()) for i in range(len(records))],
        only=only,
        all=sum(len(found) == len(records) for found in solvers.values()),
        none=sum(not found for found in solvers.values()),
        named=named,
    )
