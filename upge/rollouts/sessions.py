"""Sessions of data, engines and rewards, guarded: whatever theirs raises names the part, its package and its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from upge.estimator.part_calls import ContractViolation, attribute_errors
from upge.part import Part
from upge.session_results import as_list, as_problems, as_score, brief
from upge.types import Completion, Context, Problem, RewardSession

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
        if name in _OWED:
            with attribute_errors(self._part, self._place):
                if not callable(getattr(self._session, name, None)):
                    raise ContractViolation(f"opened a {type(self._session).__name__}, which has no `{name}`")
        found = getattr(self._session, name)
        if not callable(found):
            return found

        @wraps(found)
        def asked(*given: Any, **named: Any) -> Any:
            with attribute_errors(self._part, self._place):
                result = found(*given, **named)
                if (check := _OWED.get(name)) is not None:
                    check(result, given)
                return result

        return asked


def _problems(method: str, result: object, count: int | None) -> None:
    try:
        as_problems(result, method, count)
    except ValueError as error:
        raise ContractViolation(f"returned {error}") from error


def _completions(result: object, count: int) -> None:
    if not isinstance(result, Sequence):
        raise ContractViolation(f"returned {type(result).__name__} from `sample`; it owes a list of {count}")
    wrong = next((each for each in result if not isinstance(each, Completion)), None)
    if wrong is not None or len(result) != count:
        found = str(len(result)) if wrong is None else type(wrong).__name__
        raise ContractViolation(f"returned {found} from `sample`; it owes {count} of upge.Completion")


def _names(result: object) -> None:
    if not isinstance(result, list | tuple) or not all(isinstance(each, str) for each in result):
        raise ContractViolation(f"returned {brief(result)} from `splits`; it owes a list of names")


def _anything(result: object, given: object) -> None:
    """A result that nobody looks at here."""


_OWED: dict[str, Callable[[Any, tuple[Any, ...]], None]] = {
    "take": lambda result, given: _problems("take", result, int(given[1])),
    "split": lambda result, given: _problems("split", result, None),
    "splits": lambda result, given: _names(result),
    "sample": lambda result, given: _completions(result, len(given[0])),
    **dict.fromkeys(("state", "restore", "sync", "score"), _anything),
}
"""The methods that sessions owe, and what looks at the result for what was given, as (step, count) or (name,)."""


class Scorer:
    """A reward session held to its contract: a finite number for each pair."""

    def __init__(self, session: RewardSession, part: Part) -> None:
        self._session, self._part = session, part

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The scores, in the order of the pairs."""
        scores = self._session.score(pairs)
        with attribute_errors(self._part, "reward"):
            try:
                listed = as_list(scores, len(pairs))
            except ValueError as error:
                raise ContractViolation(f"returned {error}") from error
            try:
                return [as_score(score) for score in listed]
            except ValueError as error:
                raise ContractViolation(f"scored a response {error}") from error

    def answers(self, texts: Sequence[str]) -> list[str | None] | None:
        """The final answer in each response, None where it has none; or None if the reward offers no answers."""
        answer = getattr(self._session, "answer", None)
        if not callable(answer):
            return None
        found = [answer(text) for text in texts]
        with attribute_errors(self._part, "reward"):
            wrong = [each for each in found if each is not None and not isinstance(each, str)]
            if wrong:
                raise ContractViolation(f"answered {wrong[0]!r}; an answer is a text, or None where there is none")
        return found

    def merged(self, problem: Problem, answers: Sequence[str | None]) -> list[str | None]:
        """The answers, in place of each the commonest of those that the reward takes for the same."""
        classes = getattr(self._session, "classes", None)
        different = [answer for answer, _ in Counter(answer for answer in answers if answer is not None).most_common()]
        if not callable(classes) or len(different) < 2:
            return list(answers)
        found = classes(problem, different)
        with attribute_errors(self._part, "reward"):
            whole = isinstance(found, Sequence) and all(isinstance(number, int) for number in found)
            if not whole or len(found) != len(different):
                raise ContractViolation(
                    f"returned {found!r} for {len(different)} answers; it owes each a class's number"
                )
        commonest = dict(zip(reversed(found), reversed(different), strict=True))
        named = {answer: commonest[number] for answer, number in zip(different, found, strict=True)}
        return [None if answer is None else named[answer] for answer in answers]
