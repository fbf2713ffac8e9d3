"""The page of several runs: curves on one another, pass@k, and what only one of them solves."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from upge.evaluate.scores import Record
from upge.report.charts import COLOURS, Chart, Point, Series
from upge.report.curves import OTHER, points
from upge.report.curves import Group as Charts
from upge.report.html import rendered
from upge.report.logs import Logs
from upge.report.measurements import score_order, solving, split_of
from upge.runs.curves import Run, shared_metrics
from upge.runs.metric_names import SUBJECTS, UNIT_INTERVAL, Phase, lookup
from upge.sweep.groups import Group
from upge.sweep.scores import student

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


@dataclass(frozen=True)
class Side:
    """What is drawn as one curve: a run, or the mean over runs of one recipe with several seeds."""

    name: str
    runs: Sequence[Run]
    mean: Run

    def curve(self, metric: str, phase: str) -> list[Point]:
        """A metric at the steps that all of the runs have, with Student's 95 % interval over several."""
        curves = [dict(points([line for line in run.lines if line["phase"] == phase], metric)) for run in self.runs]
        steps = sorted(set.intersection(*map(set, curves)))
        if len(curves) == 1:
            return [Point(step, curves[0][step]) for step in steps]
        found = ((step, student([each[step] for each in curves])) for step in steps)
        return [Point(step, each.value, each.low, each.high) for step, each in found]


@dataclass(frozen=True)
class Row:
    """A run in the first table: its scores at the last measurement by their metrics' names."""

    logs: Logs
    scores: Mapping[str, float]


def comparison_page(runs: Sequence[Logs]) -> str:
    """The page of several runs."""
    heads = [name for name in shared_metrics([each.run for each in runs]) if name.count("/") == 1 and "@" in name]
    return rendered(
        "comparison.html.jinja",
        **_curves([_side(each.run) for each in runs]),
        heads=heads,
        rows=[Row(each, _last(each, heads)) for each in runs],
        pass_at_k=_pass_at_k(runs),
        solved=solved(runs),
        differing=_differing([dict(_settings(_parsed(each.recipe), "")) for each in runs]),
    )


def groups_page(groups: Sequence[Group]) -> str:
    """The page of runs by recipe, each with several seeds: means over these."""
    flat = [{key: _said(value) for key, value in each.settings.items()} for each in groups]
    return rendered(
        "groups.html.jinja",
        **_curves([_side(each) for each in groups]),
        groups=groups,
        differing=_differing(flat),
    )


def overlaid(runs: Sequence[Run] | Sequence[Group], metrics: Sequence[str]) -> list[Chart]:
    """A chart for each metric, with a curve for each run, or for each recipe's mean over seeds."""
    sides = [_side(each) for each in runs]
    return [_overlaid(sides, name, measured=split_of(name) is not None) for name in metrics]


def pass_at_k(groups: Sequence[Group]) -> list[Chart]:
    """pass@k against k on each place that evaluations were made on: means over seeds, with Student's interval."""
    found: dict[str, list[Series]] = {}
    for index, group in enumerate(groups):
        lines = [run.lines[0] for run in group.runs.values()]
        curves: dict[str, list[Point]] = {}
        for name in lines[0]:
            place, at, k = name.partition("/pass@")
            if at and all(name in line for line in lines):
                its = student([line[name] for line in lines])
                curves.setdefault(place, []).append(Point(float(k), its.value, its.low, its.high))
        for place, points_ in curves.items():
            found.setdefault(place, []).append(Series(group.name, points_, index))
    note = "pass@k, mean over seeds; shaded: 95 %"
    return [Chart(place, its, note=note, across="k", share=True, log_x=True) for place, its in found.items()]


def _side(of: Run | Group) -> Side:
    return Side(of.name, list(of.runs.values()), of.mean()) if isinstance(of, Group) else Side(of.name, [of], of)


def _curves(sides: Sequence[Side]) -> dict[str, Any]:
    """What the template needs for the curves of every page."""
    shared = shared_metrics([each.mean for each in sides])
    measured = [name for name in shared if split_of(name)]
    return {
        "title": " · ".join(each.name for each in sides),
        "runs": [(each.name, index % COLOURS) for index, each in enumerate(sides)],
        "measured": list(_measured(sides, measured)),
        "training": list(_training(sides, [name for name in shared if name not in measured])),
    }


def _last(logs: Logs, heads: Sequence[str]) -> dict[str, float]:
    lines = logs.measurements
    found = {name: points(lines, name) for name in heads}
    return {name: its[-1][1] for name, its in found.items() if its}


def _overlaid(sides: Sequence[Side], name: str, *, measured: bool) -> Chart:
    """One metric, a curve a run."""
    phase: Phase = "eval" if measured else "train"
    series = [Series(each.name, each.curve(name, phase), index) for index, each in enumerate(sides)]
    row = lookup(name, phase)
    note = "after so many steps" if measured else row.metric.note if row else ""
    return Chart(name, series, note=note, share=row is not None and row.metric.unit in UNIT_INTERVAL)


def _measured(sides: Sequence[Side], names: Sequence[str]) -> Iterator[Charts]:
    def place(name: str) -> tuple[str, bool]:
        return name.partition("/")[0], name.count("/") > 1

    def order(name: str) -> tuple[str, bool, tuple[int, int], str]:
        return *place(name), score_order(name.rpartition("/")[2]), name

    for (split, by_band), its in groupby(sorted(names, key=order), key=place):
        title = f"Measured on {split}{', by band' if by_band else ''}"
        yield Charts(title, [_overlaid(sides, name, measured=True) for name in its])


def _training(sides: Sequence[Side], names: Sequence[str]) -> Iterator[Charts]:
    """The charts by subject; without the metrics that are one same number in every run."""
    drawn: dict[str, list[Chart]] = {title: [] for title in (*SUBJECTS, OTHER)}
    for name in names:
        values = {point.y for each in sides for point in each.curve(name, "train")}
        if len(values) > 1:
            drawn[_subject(name)].append(_overlaid(sides, name, measured=False))
    yield from (Charts(title, charts) for title, charts in drawn.items() if charts)


def _subject(name: str) -> str:
    row = lookup(name, "train")
    return row.metric.subject if row else OTHER


def _pass_at_k(runs: Sequence[Logs]) -> list[Chart]:
    """Of each split pass@k against k, at each run's last measurement."""
    curves: dict[str, list[Series]] = {}
    for index, logs in enumerate(runs):
        for split, records in ends(logs).items():
            its: list[Point] = solving(records, logs.seed)
            if len(its) > 1:
                curves.setdefault(split, []).append(Series(logs.run.name, its, index))
    note = "after the last step; shaded: 95 % interval over problems"
    return [
        Chart(f"pass@k on {split}", series, note=note, across="k", share=True, log_x=True)
        for split, series in curves.items()
    ]


def _differing(flat: Sequence[Mapping[str, str]]) -> list[tuple[str, list[str]]]:
    """The settings in which recipes differ, with the value of each; "" where it has none."""
    keys = dict.fromkeys(key for own in flat for key in own)
    told = [key for key in keys if key.partition(".")[0] not in ("name", "about", "log")]
    rows = [(key, [own.get(key, "") for own in flat]) for key in told]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _parsed(text: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return None


def _settings(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """(dotted path, value) of every setting."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not children and path:
        yield path, _said(value)
    for key, child in children:
        yield from _settings(child, f"{path}.{key}" if path else str(key))


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
