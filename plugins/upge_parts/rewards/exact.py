"""The answer, letter for letter."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from upge import Context, Problem, Reward
from upge_parts.rewards.answers import Thought, conclusion, reference, unanswered


class Exact(Reward):
    """1 if the response's final answer is the reference answer, else 0.

        R = 1[strip(the text after the last `after`) = strip(answer)]

    A response without the marker is wrong; by default the whole response is compared. A thought, up to `</think>`, is
    skipped. After an opening tag, `after: <answer>`, the answer ends with the closing one. A problem without an answer
    is refused.
    Units: dimensionless, {0, 1}. Source: exact-match verification.
    """

    after: str | None = None
    """The text before the final answer; null compares the whole response."""
    thought: Thought = "skip"
    """Whether the text up to the last `</think>` is skipped if something follows it, or read like the rest."""

    def refusal(self, problem: Problem) -> str | None:
        """What is said of a problem without an answer."""
        return unanswered(problem)

    @contextmanager
    def open(self, context: Context) -> Iterator[Exact]:
        yield self

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair. Raises InputError for a problem without an answer."""
        return [float(self.answer(text) == reference(problem).strip()) for problem, text in pairs]

    def answer(self, text: str) -> str | None:
        """The final answer in a response, or None if the marker is missing."""
        text = conclusion(text, self.thought)
        if self.after is None:
            return text.strip()
        _, found, answer = text.rpartition(self.after)
        tag = re.fullmatch(r"\s*<(\w+)>\s*", self.after)
        if tag is not None:
            answer = answer.partition(f"</{tag[1]}>")[0]
        return answer.strip() if found else None
