"""Mathematical answers, compared for what they mean."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, ClassVar

from pydantic import Field

from upge import Context, InputError, Problem, Reward
from upge_parts.rewards.answers import (
    LONGEST,
    Where,
    announced,
    answer_in,
    integer,
    reference,
    spelled,
    unanswered,
    unwrapped,
)
from upge_parts.rewards.graders import Graders, Question, graders
from upge_parts.rewards.verifying import is_prose
from upge_parts.rewards.voting import classes

LEAD = "The final answer is "
"""How math-verify knows an announced answer."""


class Math(Reward):
    r"""1 if the response's answer means what the reference answer means, by math-verify, else 0.

        R = 1[answer(response) = reference], as text or as an expression

    The answer is the last complete `\boxed{…}`; or else what follows the last "answer is" or "answer:" on its line; or
    else the last line, or the last formula or number in it. So `1/2`, `0.5` and `\dfrac12` are one answer. A response
    that takes longer than `seconds`, or breaks what reads it, scores 0. Needs `upge[math]`, and Linux or macOS.

    Units: dimensionless, {0, 1}. Source: Math-Verify (github.com/huggingface/Math-Verify).
    """

    packages: ClassVar = {"math_verify": "upge[math]"}

    where: Where = "any"
    """Where the answer stands: the last box, last in the text, or any: in a box if there is one, else last."""
    seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    """How long one response may take; then its grader is killed, and the response scores 0."""
    workers: Annotated[int, Field(ge=1, le=256)] = 4
    """Processes that grade at once, of each rank."""

    def refusal(self, problem: Problem) -> str | None:
        """What is said of a problem without an answer."""
        return unanswered(problem)

    @contextmanager
    def open(self, context: Context) -> Iterator[MathSession]:
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("the reward 'math' needs math-verify: pip install 'upge[math]'")
        with graders("upge_parts.rewards.verifying", self.workers, self.seconds) as opened:
            yield MathSession(opened, self.where)


@dataclass(frozen=True)
class MathSession:
    """Open graders, and where they look for the answer."""

    graders: Graders
    where: Where

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair. Raises InputError for a problem without an answer."""
        scores = [0.0] * len(pairs)
        asked: dict[int, Question] = {}
        for index, (problem, text) in enumerate(pairs):
            right = reference(problem)
            found = answer_in(text, self.where)
            if found is None or not found.strip() or len(found) > LONGEST:
                continue
            whole = integer(right), integer(found)
            if spelled(found) == spelled(right) or (None not in whole and whole[0] == whole[1]):
                scores[index] = 1.0
            elif None in whole:
                asked[index] = (right, found, LEAD if found == announced(text) else "")
        for index, grade in zip(asked, self.graders.grade(list(asked.values())), strict=True):
            scores[index] = grade or 0.0
        return scores

    def answer(self, text: str) -> str | None:
        """The answer in a response, as it stands there but for what is around it. None if there is none."""
        found = answer_in(text, self.where)
        if found is None or not spelled(found):
            return None
        # Of a sentence it is the first formula that counts behind what announces an answer, else the last one.
        return (LEAD if is_prose(found) and found == announced(text) else "") + unwrapped(found)

    def classes(self, problem: Problem, answers: Sequence[str]) -> list[int]:
        """Equal numbers for answers that are spelled alike, or verify against each other; see `voting.classes`."""
        del problem
        return classes(answers, self.graders)
