"""A run's metrics.jsonl, as anybody may have edited it."""

from __future__ import annotations

import math
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
