"""docs/reference/metrics.md: every metric that a run logs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from generate.markdown import page, table
from upge.runs.metric_names import METRICS, SUBJECTS, Metric

INTRODUCTION = """\
# The metrics

This page lists every name in a run's `metrics.jsonl` and `timings.jsonl`. A line has a `phase`, a `step` and the
metrics of that phase. `<term>`, `<check>` and `<split>` stand for names in the recipe. Shares lie between 0 and 1.

`python docs/tables.py` makes this page from the table in
[`upge/runs/metric_names.py`](../../upge/runs/metric_names.py). The reports take their labels from the same table.
"""

TRAINING = """\
A line with `"phase": "train"` is a step. Its values are summed or averaged over micro-batches and ranks. The *weighed
tokens* of a term are those with a coefficient other than 0.
"""

CHECK = """\
The first line has `"phase": "check"`. It counts the faults of [the
data](../data.md#checks-before-the-run).
"""

MEASUREMENTS = """\
A line with `"phase": "eval"` is an evaluation. `<place>` is `<split>`, or `<split>/<band>` for the problems of a
band. The scores are those of [an evaluation](../evaluation.md). An evaluation of the trained model adds intervals and
the problems that only one of two models solves.
"""

TIMES = """\
The times are in `timings.jsonl`, so that equal runs have equal `metrics.jsonl`.
"""


def metrics_page() -> str:
    """The page."""
    return page(INTRODUCTION, "## Training", TRAINING, *_training(), *_phases())


def _training() -> Iterator[str]:
    for subject in SUBJECTS:
        yield f"### {subject}"
        yield _table(metric for metric in METRICS if metric.subject == subject)


def _phases() -> Iterator[str]:
    phases = {"check": ("The data", CHECK), "eval": ("Evaluations", MEASUREMENTS), "time": ("Times", TIMES)}
    for phase, (title, text) in phases.items():
        yield f"## {title}"
        yield text
        yield _table(metric for metric in METRICS if metric.phase == phase)


def _table(metrics: Iterable[Metric]) -> str:
    return table(("name", "unit", "meaning"), ((f"`{each.name}`", each.unit, _meaning(each)) for each in metrics))


def _meaning(metric: Metric) -> str:
    return f"{metric.meaning}. {metric.remark}" if metric.remark else metric.meaning
