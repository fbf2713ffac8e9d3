"""Mathematical answers, compared for what they mean."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from upge import Context, InputError, Problem, Reward
from upge_parts.rewards.answers import (
    LONGEST,
    Answer,
    Thought,
    Where,
    conclusion,
    integer,
    located,
    reference,
    spelled,
    unanswered,
    unwrapped,
)
from upge_parts.rewards.formulas import first, is_sentence, last, without_unit
from upge_parts.rewards.graders import Graders, Question, graders
from upge_parts.rewards.voting import classes


class Math(Reward):
    r"""1 if the response's answer is equivalent to the reference answer, by math-verify, else 0.

        R = 1[answer(response) = reference], as text or as an expression

    The answer is in the last complete `\boxed{…}` or `<answer>…</answer>`; or else it follows the last "answer is" or
    "answer:" on its line; or else it is the last line. A thought, up to `</think>`, is skipped. In a sentence it is the
    first formula or number after "answer is", and elsewhere the last. So `1/2`, `0.5` and `\dfrac12` are one answer.
    A response that takes longer than `seconds`, or crashes its grader, scores 0. Needs `upge[math]`, and Linux or
    macOS.

    Units: dimensionless, {0, 1}. Source: Math-Verify (github.com/huggingface/Math-Verify).
    """

    packages: ClassVar = {"math_verify": "upge[math]"}

    where: Where = "any"
    """The answer's place: in the last box or answer tags, last in the text, or any: in those, else last."""
    thought: Thought = "skip"
    """Whether the text up to the last `</think>` is skipped if something follows it, or read like the rest."""
    seconds: Annotated[float, Field(gt=0, le=600)] = 5.0
    """The time limit for one response; then its grader is killed, and the response scores 0."""
    workers: Annotated[int, Field(ge=1, le=256)] = 4
    """Parallel worker processes of each rank."""

    def refusal(self, problem: Problem) -> str | None:
        """What is said of a problem without an answer."""
        return unanswered(problem)

    @contextmanager
    def open(self, context: Context) -> Iterator[MathSession]:
        if importlib.util.find_spec("math_verify") is None:
            raise InputError("the reward 'math' needs math-verify: pip install 'upge[math]'")
        with graders("upge_parts.rewards.verifying", self.workers, self.seconds) as opened:
            yield MathSession(opened, self.where, self.thought)


@dataclass(frozen=True)
class MathSession:
    """Open graders, and where they look for the answer."""

    graders: Graders
    where: Where
    thought: Thought = "skip"

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair. Raises InputError for a problem without an answer."""
        scores = [0.0] * len(pairs)
        asked: dict[int, Question] = {}
        for index, (problem, text) in enumerate(pairs):
            right = reference(problem)
            found = located(conclusion(text, self.thought), self.where)
            if found is None or not found.text.strip() or len(found.text) > LONGEST:
                continue
            scores[index], *question = _compared(right, found)
            if question:
                asked[index] = tuple(question)
        for index, grade in zip(asked, self.graders.grade(list(asked.values())), strict=True):
            scores[index] = grade or 0.0
        return scores

    def answer(self, text: str) -> str | None:
        """The answer in a response, as it stands there but for what is around it. None if there is none."""
        found = located(conclusion(text, self.thought), self.where)
        if found is None or not spelled(found.text):
            return None
        return unwrapped(stated(found)[0]) or None

    def classes(self, problem: Problem, answers: Sequence[str]) -> list[int]:
        """Equal numbers for answers that are spelled alike, or verify against each other; see `voting.classes`."""
        del problem
        return classes(answers, self.graders)


def stated(found: Answer) -> tuple[str, tuple[str, ...]]:
    """The formula that an answer states, and its alternatives: all of it, or of a sentence the first or the last."""
    answer = unwrapped(found.text)
    if found.announced and (is_sentence(answer) or " or " in answer):
        return first(answer)
    return (last(answer), ()) if is_sentence(answer) else (answer, ())


def _compared(right: str, found: Answer) -> tuple[Any, ...]:
    """The score of an answer, and the question for a grader where it can't be told without one."""
    if spelled(found.text) == spelled(right):
        return (1.0,)
    formula, alternatives = stated(found)
    if re.search(r"[a-zA-Z]", re.sub(r"\\[a-zA-Z]+|(?<=\d)[eE](?=[-+\d])", "", right)) is None:
        formula = without_unit(formula)
    if not formula:
        return (0.0,)
    whole = integer(right), integer(formula)
    if spelled(formula) == spelled(right) or (None not in whole and whole[0] == whole[1]):
        return (1.0,)
    return (0.0, right, formula, *alternatives) if None in whole else (0.0,)
