"""What counts as a score: a finite number, Python's own, numpy's or torch's."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from math import nan
from numbers import Real
from typing import Any

LARGEST = 1e30
"""The largest score, of either sign: sums of such still are finite."""


def as_score(value: Any, about: str = "") -> float:
    """A score as a float: a number, a truth value, or an array or tensor without dimensions that holds one.

    Raises ValueError, with what `about` says of the value, where it is no number, not finite, or beyond `LARGEST`.
    """
    plain: Any = value.item() if getattr(value, "ndim", None) == 0 and hasattr(value, "item") else value
    number = _as_float(plain) if isinstance(plain, Real | Decimal) else nan
    if not -LARGEST <= number <= LARGEST:
        raise ValueError(f"{brief(value)}{about}; a score is a finite number, {LARGEST:g} at most")
    return number


def _as_float(number: Real | Decimal) -> float:
    try:
        return float(number)
    except (OverflowError, ValueError):  # an integer beyond all floats; a Decimal's signalling NaN
        return nan


def as_list(values: Any, count: int) -> list[Any]:
    """`count` scores as a list, from a sequence or an array of one dimension. Raises ValueError."""
    found = values.tolist() if getattr(values, "ndim", None) == 1 and hasattr(values, "tolist") else values
    if isinstance(found, str | bytes) or not isinstance(found, Sequence) or len(found) != count:
        counted = len(found) if isinstance(found, Sequence) else type(found).__name__
        raise ValueError(f"{counted} for {count} responses; it owes a number for each")
    return list(found)


def brief(value: object) -> str:
    """A value for a message, cut; its type where it can't be shown, since what shows it is anybody's code."""
    try:
        return repr(value)[:100]
    except Exception:
        return type(value).__name__
