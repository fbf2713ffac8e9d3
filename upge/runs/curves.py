"""Runs as named curves of their metrics, and such a curve as a line of text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.runs.reader import RunReader

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Columns of a curve in the terminal."""


@dataclass(frozen=True)
class Run:
    """A run's lines of metrics. Attributes: name: the recipe's, or, where several have that, the folder's, or its path.

    reader: of its folder; None where the lines are means of several runs.
    """

    name: str
    folder: Path
    lines: tuple[Mapping[str, Any], ...]
    reader: RunReader | None = field(default=None, repr=False, compare=False)

    @property
    def files(self) -> RunReader:
        """The reader of its folder."""
        return self.reader or RunReader(self.folder)

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, in order; what is not finite leaves a gap."""
        return [(line["step"], line[metric]) for line in self.lines if math.isfinite(line.get(metric, math.nan))]


def opened(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders. Raises InputError where one is none."""
    runs = [_opened(RunReader(folder)) for folder in folders]
    for other in (lambda run: run.folder.name, lambda run: str(run.folder)):
        names = [run.name for run in runs]
        runs = [replace(run, name=other(run)) if names.count(run.name) > 1 else run for run in runs]
    return runs


def _opened(reader: RunReader) -> Run:
    try:
        is_run = reader.is_run
    except OSError:  # a name too long for the system
        is_run = False
    if not is_run:
        raise InputError(f"{reader.folder}: no run folder; it has no metrics.jsonl")
    return Run(reader.name, reader.folder, reader.metrics, reader)


def shared_metrics(runs: Sequence[Run]) -> list[str]:
    """The metrics that several of the runs have curves of, measurements first."""
    measured = _names(runs, "eval")
    return [*measured, *(name for name in _names(runs, "train") if name not in measured)]


def _names(runs: Sequence[Run], phase: str) -> list[str]:
    held = [{key for line in run.lines if line["phase"] == phase for key in line} for run in runs]
    names = set().union(*held) - {"phase", "step"}
    return sorted(name for name in names if sum(name in each for each in held) >= min(2, len(runs)))


def sparkline(curve: Sequence[tuple[float, float]], low: float, high: float) -> str:
    """A curve in one line of text, on a scale from `low` to `high`."""
    values = [value for _, value in curve]
    if not values:
        return ""
    picked = (
        [values[round(i * (len(values) - 1) / (WIDTH - 1))] for i in range(WIDTH)] if len(values) > WIDTH else values
    )
    span = (high - low) or 1.0
    return "".join(BLOCKS[min(int((value - low) / span * len(BLOCKS)), len(BLOCKS) - 1)] for value in picked)
