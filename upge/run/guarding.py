"""Sessions of data, engines and rewards, guarded: whatever theirs raises names the part, its package and its place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from typing import Any, TypeVar, cast

from upge.asking import BrokenPromise, answering
from upge.flow import Context, Problem, RewardSession
from upge.parts import Part

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
                return found(*given, **named)

        return asked


LARGEST = 1e30
"""The largest score, of either sign: sums of such still are finite."""


class Scorer:
    """A reward session held to its contract: a finite number for each pair."""

    def __init__(self, session: RewardSession, part: Part) -> None:
        self._session, self._part = session, part

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The scores, in the order of the pairs."""
        scores = self._session.score(pairs)
        with answering(self._part, "reward"):
            if not isinstance(scores, Sequence) or len(scores) != len(pairs):
                counted = len(scores) if isinstance(scores, Sequence) else type(scores).__name__
                raise BrokenPromise(f"returned {counted} for {len(pairs)} responses; it owes a number for each")
            wrong = [score for score in scores if not isinstance(score, int | float) or not abs(score) <= LARGEST]
            if wrong:
                raise BrokenPromise(f"scored a response {wrong[0]!r}; a score is a finite number, {LARGEST:g} at most")
        return [float(score) for score in scores]

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
