"""Which metrics are drawn together, under which heading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upge.files import is_finite
from upge.report.charts import Chart, curve
from upge.runs.metric_names import METRICS, SUBJECTS, UNIT_INTERVAL, Metric, lookup

Line = Mapping[str, Any]

GROUPED = {
    "updates": "optimizer steps taken, and those not taken",
    "rows": "trajectories; alive: those that went through the forward pass",
    "demonstrations": "imitation that could not be had, prompts",
    "refill": "rounds of fresh prompts, and discarded prompts, and prompts left without weight",
}
"""Charts of several metrics, `updates/made` and so on, with their notes. The notes of others are in the table."""

SECONDS = "by the clock; collect: prompts, sampling, rewards; learn: the optimizer steps"

OTHER = "Other"

KEPT = ("reward", "share")
"""What is drawn even if it never changes."""


@dataclass(frozen=True)
class Group:
    """Charts under one heading."""

    title: str
    charts: list[Chart]


def groups(
    lines: Sequence[Line], timings: Sequence[Line], terms: Sequence[str]
) -> tuple[list[Group], dict[str, float]]:
    """The charts of training by subject, and the metrics that never changed with their values."""
    curves = {name: points(lines, name) for name in names(lines)}
    still = {name: line[0][1] for name, line in curves.items() if len({value for _, value in line}) == 1}
    drawn: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for name, line in curves.items():
        key, label = _place(name, terms)
        if name not in still or key in KEPT:
            drawn.setdefault(key, {})[label] = line
    for key in KEPT:
        still = {name: value for name, value in still.items() if _place(name, terms)[0] != key}
    charts = {key: _chart(key, found, terms) for key, found in drawn.items()}
    grouped: dict[str, list[Chart]] = {title: [] for title in (*SUBJECTS, OTHER)}
    for key in sorted(charts, key=lambda key: (order_of(key), key)):
        grouped[subject_of(key)].append(charts[key])
    found = [Group(title, members) for title, members in grouped.items() if members]
    return [*found, *_clocks(timings)], still


def names(lines: Sequence[Line]) -> list[str]:
    """The metrics that are numbers."""
    numbers = {key for line in lines for key, value in line.items() if is_finite(value)}
    return sorted(numbers - {"phase", "step"})


def points(lines: Sequence[Line], name: str) -> list[tuple[float, float]]:
    """(step, value) of a metric, where it is a finite number."""
    pairs = ((line["step"], line.get(name)) for line in lines)
    return [(float(step), float(value)) for step, value in pairs if value is not None and is_finite(value)]


def _place(name: str, terms: Sequence[str]) -> tuple[str, str]:
    """Which chart a metric is in, and its label there: `rl/nll` → nll, rl; `share/rl` → share, rl."""
    head, _, rest = name.partition("/")
    if head in GROUPED:
        return head, rest or "all"
    logged = lookup(name, "train", terms)
    if logged is None or not logged.values:
        return name, ""
    return _chart_of(logged.metric), next(iter(logged.values.values()))


def _chart_of(metric: Metric) -> str:
    """The chart of a row of the table: `<term>/nll` → nll, `share/<term>` → share, `updates/made` → updates."""
    parts = [part for part in metric.name.split("/") if not part.startswith("<")]
    return parts[0] if len(parts) < metric.name.count("/") + 1 or parts[0] in GROUPED else metric.name


def _first_rows() -> dict[str, tuple[int, Metric]]:
    """Chart → the place and the row of its first metric in the table."""
    rows: dict[str, tuple[int, Metric]] = {}
    for index, metric in enumerate(METRICS):
        if metric.phase == "train":
            rows.setdefault(_chart_of(metric), (index, metric))
    return rows


_ROWS = _first_rows()


def order_of(chart: str) -> int:
    """The place of a chart among others, that of its first metric in the table; unknown ones come last."""
    return _ROWS[chart][0] if chart in _ROWS else len(METRICS)


def subject_of(chart: str) -> str:
    """The heading over a chart."""
    return _ROWS[chart][1].subject if chart in _ROWS else OTHER


def _chart(key: str, found: Mapping[str, list[tuple[float, float]]], terms: Sequence[str]) -> Chart:
    ordered = sorted(found, key=lambda label: (terms.index(label) if label in terms else len(terms), label))
    colours = {label: terms.index(label) if label in terms else index for index, label in enumerate(ordered)}
    series = [curve(label, found[label], colours[label]) for label in ordered]
    row = _ROWS[key][1] if key in _ROWS else None
    note = GROUPED.get(key) or (row.note if row else "")
    title = {"share": "Terms chosen", "prompts/solved": "Prompts solved"}.get(key, key)
    return Chart(title, series, note=note, share=row is not None and row.unit in UNIT_INTERVAL)


def _clocks(timings: Sequence[Line]) -> list[Group]:
    lines = [line for line in timings if isinstance(line, Mapping) and line.get("phase") == "train"]
    series = [curve(name, points(lines, name), index) for index, name in enumerate(names(lines))]
    return [Group("Time", [Chart("seconds a step", series, note=SECONDS)])] if series else []
