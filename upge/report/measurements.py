"""What the measurements of a run say: scores with their intervals over time, and pass@k against k."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from upge.evaluate.scores import Estimate, Record, bootstrap, columns, places
from upge.report.charts import Chart, Point, Series
from upge.report.curves import Group, Line
from upge.report.logs import Logs
from upge.runs.metric_names import METRICS, UNIT_INTERVAL, lookup

Estimates = Mapping[tuple[int, str, str], Estimate]
"""(step, place, score) → its mean and interval."""


@dataclass(frozen=True)
class Measured:
    """A row of the table: a score at a place, at the first and the last measurement."""

    place: str
    score: str
    first: float
    last: float
    intervals: tuple[Estimate | None, Estimate | None]

    @property
    def band(self) -> str:
        """The band of the split; "" for all of it."""
        return self.place.partition("/")[2]


def estimates(logs: Logs) -> dict[tuple[int, str, str], Estimate]:
    """95 % intervals over problems for the shares of right answers, from the responses that were kept."""
    found = {}
    for line in logs.measurements:
        records = list(logs.responses.measured.get(line["step"], {}).values())
        for place, members in places(records).items():
            for score, values in columns(members, _asked(line, place)).items():
                if "@" in score and f"{place}/{score}" in line:
                    found[line["step"], place, score] = bootstrap(values, logs.seed)
    return found


def _asked(line: Line, place: str) -> list[int]:
    """The k of the pass@k that a measurement has of a place."""
    pattern = re.compile(re.escape(place) + r"/pass@(\d+)")
    return [int(match[1]) for key in line if (match := pattern.fullmatch(key))]


def charts(logs: Logs, intervals: Estimates) -> list[Group]:
    """For each split a chart a score, with the split as a whole and each of its bands."""
    lines = logs.measurements
    found = sorted({split_of(key) for line in lines for key in line} - {None}, key=lambda each: each or ("", ""))
    grouped = []
    for split, members in groupby([each for each in found if each], key=lambda each: each[0].partition("/")[0]):
        by_score: dict[str, list[str]] = {}
        for place, score in members:
            by_score.setdefault(score, []).append(place)
        drawn = [
            _chart(score, its, lines, intervals)
            for score, its in sorted(by_score.items(), key=lambda item: score_order(item[0]))
        ]
        grouped.append(Group(f"Measured on {split}", drawn))
    return grouped


def split_of(key: str) -> tuple[str, str] | None:
    """(place, score) of a metric's name, where it is that of a measurement."""
    logged = lookup(key, "eval")
    return None if logged is None else (logged.values["place"], key.removeprefix(f"{logged.values['place']}/"))


def score_order(score: str) -> tuple[int, int]:
    """The place of a score among others: that of its row in the table of metrics, then its number of samples."""
    logged = lookup(f"place/{score}", "eval")
    assert logged is not None, f"{score} is no score"
    return METRICS.index(logged.metric), int(score.partition("@")[2] or 0)


def _chart(score: str, members: Sequence[str], lines: Sequence[Line], intervals: Estimates) -> Chart:
    series = []
    for index, place in enumerate(members):
        points = []
        for line in lines:
            value = line.get(f"{place}/{score}")
            if isinstance(value, int | float):
                found = intervals.get((line["step"], place, score))
                ends = (found.low, found.high) if found else (None, None)
                points.append(Point(float(line["step"]), float(value), *ends))
        series.append(Series(place.partition("/")[2] or "all", points, index))
    shaded = any(point.low is not None for each in series for point in each.points)
    note = "shaded: 95 % interval over problems" if shaded else "after so many steps"
    logged = lookup(f"place/{score}", "eval")
    return Chart(score, series, note=note, share=logged is not None and logged.metric.unit in UNIT_INTERVAL)


def pass_at_k(logs: Logs) -> list[Chart]:
    """Of each split pass@k against k, at the first and the last measurement."""
    measured = logs.responses.measured
    ends = sorted({min(measured), max(measured)}) if measured else []
    curves: dict[str, list[Series]] = {}
    for index, step in enumerate(ends):
        records = list(measured[step].values())
        for split in dict.fromkeys(record.split for record in records):
            members = [record for record in records if record.split == split]
            points = solving(members, logs.seed)
            if len(points) > 1:
                curves.setdefault(split, []).append(Series(f"after step {step}" if step else "before", points, index))
    return [
        Chart(
            f"pass@k on {split}",
            series,
            note="shaded: 95 % interval over problems",
            across="k",
            share=True,
            log_x=True,
        )
        for split, series in curves.items()
    ]


def solving(records: Sequence[Record], seed: int) -> list[Point]:
    """(k, pass@k with its interval) for k = 1, 2, 4, … and the number of samples."""
    n = min((record.n for record in records), default=0)
    ks = sorted({*(1 << power for power in range(n.bit_length()) if 1 << power <= n), n} - {0})
    scores = columns(list(records), ks) if n else {}
    found = ((k, bootstrap(scores[f"pass@{k}"], seed)) for k in ks)
    return [Point(float(k), each.value, each.low, each.high) for k, each in found]


def table(lines: Sequence[Line], intervals: Estimates) -> list[Measured]:
    """Every score at the first and the last measurement."""
    if not lines:
        return []
    first, last = lines[0], lines[-1]
    rows = []
    for key, value in last.items():
        found = split_of(key)
        if found is not None and isinstance(first.get(key), int | float):
            ends = intervals.get((first["step"], *found)), intervals.get((last["step"], *found))
            rows.append(Measured(*found, first[key], value, ends))
    return rows
