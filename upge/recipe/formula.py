"""The formulas in parts' docstrings, with the numbers of a recipe filled in."""

from __future__ import annotations

import inspect
import re
from typing import Literal, get_args, get_origin

from upge.parts import Part

_BETWEEN = re.compile(r"\s{4,}")
"""What stands between two formulas on one line."""


def formula(kind: type[Part]) -> list[str]:
    """The lines of the formula in a part's docstring: its first indented block."""
    text = inspect.cleandoc(kind.__doc__ or "")
    block = re.search(r"^(?:    .+\n?)+", text, flags=re.MULTILINE)
    return [line.strip() for line in block[0].splitlines()] if block else []


def filled(part: Part) -> list[str]:
    """A part's formulas, one a line, with its own numbers in place of its parameters' names.

    Where a formula begins with a value that one of the part's parameters can choose, as in `k2: …    k3: …`, only that
    of the chosen value is kept.
    """
    formulas = [piece for line in formula(type(part)) for piece in _pieces(line, part)]
    chosen = [_without_label(piece, part) for piece in formulas]
    return [_with_values(piece, part) for piece in chosen if piece is not None]


def _pieces(line: str, part: Part) -> list[str]:
    """The formulas of one line; what a label stands before belongs to it up to the next label."""
    pieces, label = [], ""
    for piece in _BETWEEN.split(re.sub(r"^(\w+:)\s+", r"\1 ", line)):
        label = piece.partition(":")[0] if _labelled(piece, part) else label
        pieces.append(f"{label}: {piece}" if label and not _labelled(piece, part) else piece)
    return pieces


def _without_label(piece: str, part: Part) -> str | None:
    """The formula behind its label; None where the label is of another choice than the part's."""
    label, _, rest = piece.partition(":")
    fields = _choosing(label, part)
    if not fields:
        return piece
    return rest.strip() if any(getattr(part, name) == label for name in fields) else None


def _labelled(piece: str, part: Part) -> bool:
    return bool(_choosing(piece.partition(":")[0], part)) and ":" in piece


def _choosing(label: str, part: Part) -> list[str]:
    """The part's parameters that can choose the value `label`."""
    fields = type(part).model_fields.items()
    literal = {name: get_args(field.annotation) for name, field in fields if get_origin(field.annotation) is Literal}
    return [name for name, choices in literal.items() if label in choices]


def _with_values(piece: str, part: Part) -> str:
    for name, value in part.dump().items():
        if isinstance(value, bool) or name == "use":
            continue
        if isinstance(value, int | float):
            piece = re.sub(rf"(?<![\w.]){name}(?!\w)", written(value), piece)
        elif isinstance(value, str):
            piece = re.sub(rf"(?<!\w)s_{name}(?!\w)", f"s_{value}", piece)
    return piece


def written(value: object) -> str:
    """A parameter's value, for people."""
    match value:
        case {"start": start, "end": end, "steps": steps}:
            return f"{start:g}→{end:g} in {steps} steps"
        case dict():
            return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
        case list() | tuple():
            return "+".join(map(written, value))
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return "null" if value is None else str(value)
