"""Sessions of data, engines and rewards, guarded: whatever theirs raises names the part, its package and its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from upge.asking import BrokenPromise, answering
from upge.flow import Completion, Context, Problem, RewardSession
from upge.parts import Part
from upge.score import as_list, as_score

Session = TypeVar("Session")


@contextmanager
def opened(
    part: Part, place: str, open_: Callable[[Context], AbstractContextManager[Session]], context: Context
) -> Iterator[Session]:
    """The part's session, open; errors in opening, in any of its methods and in closing are the part's own."""
    with answering(part, place):
        manager = open_(context)
        session = manager.__enter__()
    try:
        yield cast(Session, Guarded(session, part, place))
    except BaseException as error:
        if not manager.__exit__(type(error), error, error.__traceback__):
            raise
    else:
        with answering(part, place):
            manager.__exit__(None, None, None)


class Guarded:
    """A session whose methods answer for their part."""

    def __init__(self, session: object, part: Part, place: str) -> None:
        self._session, self._part, self._place = session, part, place

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._session, name)
        if not callable(found):
            return found

        @wraps(found)
        def asked(*given: Any, **named: Any) -> Any:
            with answering(self._part, self._place):
                result = found(*given, **named)
                if (owed := _OWED.get(name)) is not None:
                    _check(name, result, owed[0], owed[1](given))
                return result

        return asked


_OWED: dict[str, tuple[type, Callable[[tuple[Any, ...]], int]]] = {
    "take": (Problem, lambda given: int(given[1])),
    "sample": (Completion, lambda given: len(given[0])),
}
"""What a session's method returns a list of, and how many for what it is given: (step, count), (requests, sampling)."""


def _check(method: str, result: object, kind: type, count: int) -> None:
    if not isinstance(result, Sequence):
        raise BrokenPromise(f"returned {type(result).__name__} from `{method}`; it owes a list of {count}")
    wrong = next((each for each in result if not isinstance(each, kind)), None)
    if wrong is not None or len(result) != count:
        found = str(len(result)) if wrong is None else type(wrong).__name__
        raise BrokenPromise(f"returned {found} from `{method}`; it owes {count} of upge.{kind.__name__}")


class Scorer:
    """A reward session held to its contract: a finite number for each pair."""

    def __init__(self, session: RewardSession, part: Part) -> None:
        self._session, self._part = session, part

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The scores, in the order of the pairs."""
        scores = self._session.score(pairs)
        with answering(self._part, "reward"):
            try:
                listed = as_list(scores, len(pairs))
            except ValueError as error:
                raise BrokenPromise(f"returned {error}") from error
            try:
                return [as_score(score) for score in listed]
            except ValueError as error:
                raise BrokenPromise(f"scored a response {error}") from error

    def answers(self, texts: Sequence[str]) -> list[str | None] | None:
        """The final answer in each response, None where it has none; or None if the reward offers no answers."""
        answer = getattr(self._session, "answer", None)
        if not callable(answer):
            return None
        found = [answer(text) for text in texts]
        with answering(self._part, "reward"):
            wrong = [each for each in found if each is not None and not isinstance(each, str)]
            if wrong:
                raise BrokenPromise(f"answered {wrong[0]!r}; an answer is a text, or None where there is none")
        return found

    def merged(self, problem: Problem, answers: Sequence[str | None]) -> list[str | None]:
        """The answers, in place of each the commonest of those that the reward takes for the same."""
        classes = getattr(self._session, "classes", None)
        different = [answer for answer, _ in Counter(answer for answer in answers if answer is not None).most_common()]
        if not callable(classes) or len(different) < 2:
            return list(answers)
        found = classes(problem, different)
        with answering(self._part, "reward"):
            whole = isinstance(found, Sequence) and all(isinstance(number, int) for number in found)
            if not whole or len(found) != len(different):
                raise BrokenPromise(f"returned {found!r} for {len(different)} answers; it owes each a class's number")
        commonest = dict(zip(reversed(found), reversed(different), strict=True))
        named = {answer: commonest[number] for answer, number in zip(different, found, strict=True)}
        return [None if answer is None else named[answer] for answer in answers]
