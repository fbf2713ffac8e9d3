"""The answer, letter for letter."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from upge import Context, Problem, Reward


class Exact(Reward):
    """1 if the response's final answer is the reference answer, else 0.

        R = 1[strip(the text after the last `after`) = strip(answer)]

    A response without the marker is wrong; `after: null` compares the whole response.
    Units: dimensionless, {0, 1}. Source: exact-match verification.
    """

    after: str | None = None
    """What the final answer comes after; null compares the whole response."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Exact]:
        yield self

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair."""
        return [float(self.answer(text) == problem.answer.strip()) for problem, text in pairs]

    def answer(self, text: str) -> str | None:
        """The final answer in a response, or None if the marker is missing."""
        if self.after is None:
            return text.strip()
        _, found, answer = text.rpartition(self.after)
        return answer.strip() if found else None
