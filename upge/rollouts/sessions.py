"""Sessions of data, engines and rewards, guarded: whatever theirs raises names the part, its package and its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from upge.estimator.part_errors import ContractViolation, attribute_errors
from upge.part import BatchField, Part
from upge.session_results import as_list, as_problems, as_score, brief
from upge.types import Completion, Context

Session = TypeVar("Session")


@contextmanager
def opened(
    part: Part, place: str, open_: Callable[[Context], AbstractContextManager[Session]], context: Context
) -> Iterator[Session]:
    """The part's session, open; errors in opening, in any of its methods and in closing are the part's own.

    A part that holds others opens them so too. Then each answers for itself, whatever it raises or returns.

    Args: place: of the part in the recipe, `data.sources.one`. open_: its method. context: what it is opened with.
    """
    with attribute_errors(part, place):
        manager = open_(context)
        session = manager.__enter__()
    try:
        yield cast(Session, Guarded(session, part, place))
    except BaseException as error:
        if not manager.__exit__(type(error), error, error.__traceback__):
            raise
    else:
        with attribute_errors(part, place):
            manager.__exit__(None, None, None)


class Guarded:
    """A session whose methods answer for their part."""

    def __init__(self, session: object, part: Part, place: str) -> None:
        self._session, self._part, self._place = session, part, place

    def __getattr__(self, name: str) -> Any:
        if name in _CHECKED and name not in _MAY_LACK.get(self._part.slot, ()):
            with attribute_errors(self._part, self._place):
                if not callable(getattr(self._session, name, None)):
                    raise ContractViolation(f"opened a {type(self._session).__name__}, which has no `{name}`")
        method = getattr(self._session, name)
        if not callable(method):
            return method

        @wraps(method)
        def asked(*arguments: Any, **named: Any) -> Any:
            with attribute_errors(self._part, self._place):
                result = method(*arguments, **named)
                check = _CHECKED.get(name) or _OFFERED.get(name)
                return result if check is None else check(result, arguments)

        return asked


def _problems(method: str, result: object, count: int | None) -> object:
    with _violation("returned"):
        as_problems(result, method, count)
    return result


def _completions(result: object, count: int) -> object:
    if not isinstance(result, Sequence):
        raise ContractViolation(f"returned {type(result).__name__} from `sample`; it should return a list of {count}")
    wrong = next((completion for completion in result if not isinstance(completion, Completion)), None)
    if wrong is not None or len(result) != count:
        returned = str(len(result)) if wrong is None else type(wrong).__name__
        raise ContractViolation(f"returned {returned} from `sample`; it should return {count} of upge.Completion")
    return result


def _names(result: object) -> object:
    if not isinstance(result, list | tuple) or not all(isinstance(name, str) for name in result):
        raise ContractViolation(f"returned {brief(result)} from `splits`; it should return a list of names")
    return result


def _scores(result: Any, count: int) -> list[float]:
    with _violation("returned"):
        listed = as_list(result, count)
    with _violation("scored a response"):
        return [as_score(score) for score in listed]


def _answer(result: object) -> object:
    if result is not None and not isinstance(result, str):
        raise ContractViolation(f"answered {result!r}; an answer should be text, or None")
    return result


def _classes(result: object, count: int) -> object:
    whole = isinstance(result, Sequence) and all(isinstance(number, int) for number in result)
    if not whole or len(result) != count:  # type: ignore[arg-type]
        raise ContractViolation(f"returned {result!r} for {count} answers; it should return a class number for each")
    return result


@contextmanager
def _violation(did: str) -> Iterator[None]:
    """Convert a ValueError about a session's result to a ContractViolation."""
    try:
        yield
    except ValueError as error:
        raise ContractViolation(f"{did} {error}") from error


def _anything(result: object, arguments: object) -> object:
    """A result without checks."""
    del arguments
    return result


Check = Callable[[Any, tuple[Any, ...]], Any]
"""What a caller gets of a method's result, for the arguments that the method was given."""

_CHECKED: dict[str, Check] = {
    "take": lambda result, given: _problems("take", result, int(given[1])),
    "split": lambda result, given: _problems("split", result, None),
    "splits": lambda result, given: _names(result),
    "sample": lambda result, given: _completions(result, len(given[0])),
    "score": lambda result, given: _scores(result, len(given[0])),
    **dict.fromkeys(("state", "restore", "sync", "read"), _anything),
}
"""The methods of sessions, each with the check of its result."""

_MAY_LACK = {BatchField.slot: ("state", "restore")}
"""The methods among these that sessions of a slot need not have."""

_OFFERED: dict[str, Check] = {
    "answer": lambda result, given: _answer(result),
    "classes": lambda result, given: _classes(result, len(given[1])),
}
"""The methods that a session may have."""
