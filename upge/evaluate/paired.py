"""Two evaluations of the same problems: paired differences with intervals, and what only one of the two solved.

The two may be a run's own, before its first step and after its last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from upge.errors import InputError
from upge.evaluate.scores import Estimate, Record, bootstrap, columns, places
from upge.files import is_count, parse_json
from upge.runs.reader import RunReader


@dataclass(frozen=True)
class Evaluated:
    """An evaluation read from its folder. `name` is the folder's, with its path if several have this name."""

    name: str
    records: tuple[Record, ...]
    pass_at: tuple[int, ...]
    seed: int


@dataclass(frozen=True)
class Difference:
    """A score of two evaluations at a place: their means, and the mean of second − first over the same problems."""

    place: str
    score: str
    first: float
    second: float
    difference: Estimate


@dataclass(frozen=True)
class Solved:
    """The problems of a place by who solved them, that is, has a right response among its n: ids."""

    place: str
    both: tuple[str, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]


@dataclass(frozen=True)
class Bands:
    """How many problems of a place an evaluation never solves, sometimes (in less than half of its n), and often."""

    place: str
    never: int
    sometimes: int
    often: int


def is_evaluation(folder: Path) -> bool:
    """Whether an evaluation has left this folder."""
    try:
        return (folder / "problems.jsonl").is_file()
    except OSError:  # a name too long for the system
        return False


def opened(folders: Sequence[Path]) -> list[Evaluated]:
    """The evaluations in these folders. Raises InputError where one can't be read."""
    evaluations = [_opened(folder) for folder in folders]
    names = [evaluation.name for evaluation in evaluations]
    return [
        replace(evaluation, name=str(folder)) if names.count(evaluation.name) > 1 else evaluation
        for evaluation, folder in zip(evaluations, folders, strict=True)
    ]


def _opened(folder: Path) -> Evaluated:
    try:
        summary = parse_json((folder / "summary.json").read_text(encoding="utf-8"))
        with (folder / "problems.jsonl").open(encoding="utf-8") as lines:
            records = tuple(Record.of(parse_json(line)) for line in lines)
        pass_at, seed = tuple(summary["pass_at"]), summary["seed"]
        if not all(map(is_count, (*pass_at, seed))):
            raise ValueError("'pass_at' and 'seed' should be numbers from 0")
        return Evaluated(folder.resolve().name, records, pass_at, seed)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}: its problems.jsonl or summary.json can't be read ({error!r})") from error


def measured(run: RunReader) -> list[Evaluated]:
    """The first and the last measurement of a run; none where it made fewer than two, or kept no responses.

    Raises InputError where its completions.jsonl or manifest.json can't be read.
    """
    steps = records_by_step(run)
    ends = sorted(steps)[:: max(len(steps) - 1, 1)] if len(steps) > 1 else []
    # A run's own two are compared as a whole: their bands are in the report.
    records = {step: tuple(replace(record, band=None) for record in steps[step].values()) for step in ends}
    return [Evaluated(f"step {step}", its, (), run.seed) for step, its in records.items()]


def records_by_step(run: RunReader) -> dict[int, dict[tuple[str, str], Record]]:
    """Step → (split, problem) → the responses of a run's measurements."""
    steps: dict[int, dict[tuple[str, str], Record]] = {}
    for response in run.responses:
        stream, _, split = response.stream.partition("/")
        if stream == "eval":
            key = (split, response.problem)
            record = steps.setdefault(response.step, {}).setdefault(key, Record(*key, response.band))
            record.add(response.reward, response.truncated, response.length)
    return steps


def bands(evaluated: Evaluated) -> list[Bands]:
    """How often an evaluation solves its problems, by place."""
    counts = []
    for place, members in places(evaluated.records).items():
        never = sum(record.right == 0 for record in members)
        often = sum(2 * record.right >= record.n for record in members if record.right)
        counts.append(Bands(place, never, len(members) - never - often, often))
    return counts


def differences(first: Evaluated, second: Evaluated) -> list[Difference]:
    """Every score that both have, by place: avg (whatever n), pass@k, maj@n of equal n, truncated, length.

    The bootstrap is over problems, each with both of its values: it answers whether the second is better on problems
    of this kind, which two intervals side by side do not. Raises InputError unless both are of the same problems.
    """
    pass_at = [k for k in first.pass_at if k in second.pass_at]
    rows = []
    for place, (ours, theirs) in _paired(first, second).items():
        one, other = _comparable(ours, pass_at), _comparable(theirs, pass_at)
        for score in one:
            if score in other:
                gaps = [b - a for a, b in zip(one[score], other[score], strict=True)]
                means = fmean(one[score]), fmean(other[score])
                rows.append(Difference(place, score, *means, bootstrap(gaps, first.seed)))
    return rows


def solved(first: Evaluated, second: Evaluated) -> list[Solved]:
    """Who solved what, by place. Raises InputError unless both are of the same problems."""
    rows = []
    for place, (ours, theirs) in _paired(first, second).items():
        one, other = ({record.id for record in its if record.right} for its in (ours, theirs))
        ids = [record.id for record in ours]
        rows.append(
            Solved(
                place,
                both=tuple(record for record in ids if record in one & other),
                only_first=tuple(record for record in ids if record in one - other),
                only_second=tuple(record for record in ids if record in other - one),
            )
        )
    return rows


def same_n(first: Evaluated, second: Evaluated) -> bool:
    """Whether both had equally many chances to solve each problem."""
    return all(
        ours.n == theirs.n for a, b in _paired(first, second).values() for ours, theirs in zip(a, b, strict=True)
    )


def exported(first: Evaluated, others: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """All numbers of each pair, as plain data."""
    return [
        {
            "first": first.name,
            "second": other.name,
            "differences": [asdict(row) for row in differences(first, other)],
            "solved": [asdict(row) for row in solved(first, other)],
            "bands": {row.name: [asdict(its) for its in bands(row)] for row in (first, other)},
        }
        for other in others
    ]


def _paired(first: Evaluated, second: Evaluated) -> dict[str, tuple[list[Record], list[Record]]]:
    """Place → the records of both, problem by problem in the first one's order."""
    theirs = {(record.split, record.id): record for record in second.records}
    alone = {(record.split, record.id) for record in first.records} ^ set(theirs)
    if alone:
        split, identity = min(alone)
        raise InputError(
            f"{first.name} and {second.name} are not of the same problems: only one of them has '{identity}' of "
            f"'{split}' ({len(alone)} such in all)"
        )
    return {
        place: (members, [theirs[record.split, record.id] for record in members])
        for place, members in places(first.records).items()
    }


def _comparable(records: Sequence[Record], pass_at: Sequence[int]) -> dict[str, list[float]]:
    """The scores by names without n, which two evaluations need not share: avg@32 and avg@4 estimate the same mean."""
    named = columns(records, pass_at)
    return {name.partition("@")[0] if name.startswith("avg@") else name: values for name, values in named.items()}
