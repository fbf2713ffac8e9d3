"""What counts as problems: what every data source owes the run, held to its types before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upge.flow import Problem
from upge.score import brief


def as_problems(values: Any, method: str, count: int | None = None) -> list[Problem]:
    """What a session's method returned, as a list of `count` problems or of any number; each field has its type.

    Raises ValueError, which completes "returned …", where it is no list of them, or a field is something else.
    """
    owed = "a list" if count is None else f"a list of {count}"
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise ValueError(f"{type(values).__name__} from `{method}`; it owes {owed}")
    wrong = next((each for each in values if not isinstance(each, Problem)), None)
    if wrong is not None or count not in (None, len(values)):
        found = str(len(values)) if wrong is None else type(wrong).__name__
        raise ValueError(f"{found} from `{method}`; it owes {owed.removeprefix('a list of ')} of upge.Problem")
    for problem in values:
        _check(problem, method)
    return list(values)


def _check(problem: Problem, method: str) -> None:
    """Raise ValueError where a field of a problem has another type than it owes."""
    for name, optional in (("id", False), ("answer", True), ("demonstration", True), ("band", True)):
        value = getattr(problem, name)
        if not isinstance(value, str) and not (optional and value is None):
            raise _wrong(problem, method, name, "text, or None" if optional else "text")
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


def _wrong(problem: Problem, method: str, name: str, wanted: str) -> ValueError:
    found = f"the {name} {brief(getattr(problem, name))} of the problem {brief(problem.id)}"
    return ValueError(f"{found} from `{method}`; it should be {wanted}")
