"""Checks of the results of sessions: scores and problems of the right types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from math import nan
from numbers import Real
from typing import Any

from upge.types import Problem

LARGEST = 1e30
"""The largest score, of either sign: sums of such still are finite."""


def as_score(value: Any, about: str = "") -> float:
    """A score as a float: a number, a truth value, or an array or tensor without dimensions that holds one.

    Raises ValueError, with `about`'s description, if the value is no number, not finite, or beyond `LARGEST`.
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
    items = values.tolist() if getattr(values, "ndim", None) == 1 and hasattr(values, "tolist") else values
    if isinstance(items, str | bytes) or not isinstance(items, Sequence) or len(items) != count:
        counted = len(items) if isinstance(items, Sequence) else type(items).__name__
        raise ValueError(f"{counted} for {count} responses; it should return a number for each")
    return list(items)


def brief(value: object) -> str:
    """A value for a message, cut; its type if its `repr` raises."""
    try:
        return repr(value)[:100]
    except Exception:
        return type(value).__name__


def as_problems(values: Any, method: str, count: int | None = None) -> list[Problem]:
    """The result of a session's method as a list of `count` problems (or of any number), with checked fields.

    Raises ValueError, which completes "returned …", where it is no list of them, or a field is something else.
    """
    owed = "a list" if count is None else f"a list of {count}"
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise ValueError(f"{type(values).__name__} from `{method}`; it should return {owed}")
    wrong = next((item for item in values if not isinstance(item, Problem)), None)
    if wrong is not None or count not in (None, len(values)):
        returned = str(len(values)) if wrong is None else type(wrong).__name__
        raise ValueError(
            f"{returned} from `{method}`; it should return {owed.removeprefix('a list of ')} of upge.Problem"
        )
    for problem in values:
        _check(problem, method)
    return list(values)


def _check(problem: Problem, method: str) -> None:
    """Raise ValueError if a field of a problem has a wrong type."""
    for name, optional in (("id", False), ("answer", True), ("demonstration", True), ("band", True)):
        value = getattr(problem, name)
        if not isinstance(value, str) and not (optional and value is None):
            raise _wrong(problem, method, name, "text, or None" if optional else "text")
    if not isinstance(problem.columns, Mapping):
        raise _wrong(problem, method, "columns", "a map of names to numbers and texts")
    prompt: Any = problem.prompt
    if not isinstance(prompt, str) and not _is_conversation(prompt):
        raise _wrong(problem, method, "prompt", "text, or messages with the texts 'role' and 'content'")


def _is_conversation(prompt: Any) -> bool:
    if isinstance(prompt, bytes) or not isinstance(prompt, Sequence) or not prompt:
        return False
    return all(
        isinstance(turn, Mapping) and all(isinstance(turn.get(key), str) for key in ("role", "content"))
        for turn in prompt
    )


def _wrong(problem: Problem, method: str, name: str, expected: str) -> ValueError:
    actual = f"the {name} {brief(getattr(problem, name))} of the problem {brief(problem.id)}"
    return ValueError(f"{actual} from `{method}`; it should be {expected}")
