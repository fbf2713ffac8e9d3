"""Wrong rewards. The docstring of each says what is wrong with it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from upge import Context, Problem, Reward

ONE_RANK: set[str] = set()
CORNER = {"Blank", "Shown", "Huge", "ByText"}


class Base(Reward):
    """What the wrong ones share: a session that scores response by response."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        self.__dict__["_seen"] = {}
        yield self

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> Any:
        return [self.one(problem, text) for problem, text in pairs]

    def one(self, problem: Problem, text: str) -> Any:
        return float(problem.answer in text)


class Sorted(Base):
    """The scores in their own order."""

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> Any:
        return sorted(super().score(pairs))


class Blank(Base):
    """A share of the characters, of which an empty response has none."""

    def one(self, problem: Problem, text: str) -> Any:
        return sum(c in problem.answer for c in text) / len(text)


class Shown(Base):
    """Compares with the demonstration's first letter, which an empty demonstration doesn't have."""

    def one(self, problem: Problem, text: str) -> Any:
        return float(problem.demonstration is not None and text.startswith(problem.demonstration[0]))


class Huge(Base):
    """Reads the number that the response is, which may be infinite or none."""

    def one(self, problem: Problem, text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            return 0.0


class Improving(Base):
    """A response scores what it adds to those before."""

    def one(self, problem: Problem, text: str) -> Any:
        self._seen[problem.id] = self._seen.get(problem.id, 0) + 1
        return super().one(problem, text) / self._seen[problem.id]


class Once(Base):
    """Keeps a problem's first score for all its responses."""

    def one(self, problem: Problem, text: str) -> Any:
        return self._seen.setdefault(problem.id, super().one(problem, text))


class Different(Base):
    """A score for each different pair, and not for each pair."""

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> Any:
        return [self.one(*pair) for pair in {(p.id, t): (p, t) for p, t in pairs}.values()]


class Tossed(Base):
    """Tosses a coin where it isn't sure."""

    def one(self, problem: Problem, text: str) -> Any:
        return super().one(problem, text) or float(random.random() < 0.1)


class Worded(Base):
    """Says it in words."""

    def one(self, problem: Problem, text: str) -> Any:
        return "right" if problem.answer in text else "wrong"


class Editing(Base):
    """Appends the response to the problem's conversation."""

    def one(self, problem: Problem, text: str) -> Any:
        if isinstance(problem.prompt, list):
            problem.prompt.append({"role": "assistant", "content": text})
        return super().one(problem, text)


class ByText(Base):
    """Remembers scores by the response alone, whichever problem it answers."""

    def one(self, problem: Problem, text: str) -> Any:
        return self._seen.setdefault(text, super().one(problem, text))
