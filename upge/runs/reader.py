"""What run folders hold, read as anybody may have edited it: measurements and curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.files import parse_json, regular_file


def metrics_of(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl: `phase`, `step`, and numbers; without the last one where that was cut off.

    Raises InputError with the first line that can't be read.
    """
    try:
        text = regular_file(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: can't be read ({getattr(error, 'strerror', None) or error})") from error
    lines = text.split("\n")[:-1]  # a whole line ends with a line feed
    return [_line(line, f"{file}:{number}") for number, line in enumerate(lines, start=1)]


def _line(text: str, place: str) -> dict[str, Any]:
    try:
        line = parse_json(text)
    except ValueError as error:
        raise InputError(f"{place}: can't be read: {error}") from error
    if not isinstance(line, dict):
        raise InputError(f"{place}: can't be read: not a JSON object")
    if not isinstance(line.get("phase"), str) or not is_count(line.get("step")):
        raise InputError(f"{place}: has no 'phase', a text, or no 'step', a number from 0")
    if wrong := [name for name, value in line.items() if name != "phase" and not is_number(value)]:
        raise InputError(f"{place}: '{wrong[0][:80]}' is no number")
    return line


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a number that a float can hold."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def is_finite(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return is_number(value) and math.isfinite(value)


def is_count(value: Any) -> bool:
    """Whether a value of JSON is a whole number from 0."""
    return isinstance(value, int) and is_number(value) and value >= 0


BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 24
"""Columns of a curve in the terminal."""


@dataclass(frozen=True)
class Run:
    """A run as its folder tells it: `name` of the recipe, or, where several have that, of the folder, or its path."""

    name: str
    folder: Path
    lines: tuple[Mapping[str, Any], ...]

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """(step, value) of a metric, in order; what is not finite leaves a gap."""
        return [(line["step"], line[metric]) for line in self.lines if math.isfinite(line.get(metric, math.nan))]


def opened(folders: Sequence[Path]) -> list[Run]:
    """The runs in these folders. Raises InputError where one is none."""
    runs = [_opened(folder) for folder in folders]
    for other in (lambda run: run.folder.name, lambda run: str(run.folder)):
        names = [run.name for run in runs]
        runs = [replace(run, name=other(run)) if names.count(run.name) > 1 else run for run in runs]
    return runs


def _opened(folder: Path) -> Run:
    metrics = folder / "metrics.jsonl"
    try:
        if not metrics.is_file():
            raise InputError(f"{folder}: no run folder; it has no metrics.jsonl")
        lines = tuple(metrics_of(metrics))
        name = str(parse_json((folder / "manifest.json").read_text(encoding="utf-8"))["recipe"]["name"])
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: its manifest.json can't be read ({error})") from error
    return Run(name, folder, lines)


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
