"""The letter of a multiple choice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import Field

from upge import Context, InputError, Problem, Reward
from upge_parts.rewards.answers import MARKER, Where, boxed, reference, spelled, unanswered


class Choice(Reward):
    r"""1 if the response chooses the reference answer's letter, else 0.

        R = 1[letter(response) = letter(reference)]

    The letter is looked for in this order, and the first place that there is decides:

    1. the last complete `\boxed{…}`: a letter and nothing else, as `C`, `c`, `(C)`, `C.` or `\text{C}`;
    2. right behind the last "answer is" or "answer:": a capital letter, as `C`, `(C)`, `**C**` or `$C$`;
    3. the last capital letter that stands alone, in brackets or before a full stop, comma, colon or the line's end.

    A response without any is wrong. A reference that is no letter of `letters` is refused.
    Units: dimensionless, {0, 1}. Source: exact match of letters, as for ARC and GPQA.
    """

    letters: str = Field(default="ABCDE", pattern="^[A-Z]+$")
    """The letters that there are to choose from, capitals."""
    where: Where = "any"
    """Where the letter is looked for: boxed is rule 1, last is rules 2 and 3, any is all of them."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Choice]:
        yield self

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair. Raises InputError for a reference that is no letter."""
        return [float(self.answer(text) == self._reference(problem)) for problem, text in pairs]

    def answer(self, text: str) -> str | None:
        """The letter that a response chooses, or None."""
        box = boxed(text) if self.where != "last" else None
        if box is not None or self.where == "boxed":
            return self._alone(box or "")
        announced = list(MARKER.finditer(text))
        if announced:
            behind = re.compile(rf"[\s(*$]{{0,20}}(?:\\text\{{)?\(?([{self.letters}])(?![\w'])")
            found = behind.match(text, announced[-1].end())
            return found[1] if found else None
        standing = re.findall(rf"(?<![\w'\\])([{self.letters}])(?=[).,:*$]|[ \t]*$)", text, flags=re.MULTILINE)
        return standing[-1] if standing else None

    def refusal(self, problem: Problem) -> str | None:
        """What is said of a problem whose answer is no letter."""
        if self._alone(problem.answer or "") is not None:
            return None
        place = "" if problem.place is None else f"{problem.place}: "
        wrong = f"{place}the answer of the problem '{problem.id}' is none of the letters {self.letters}"
        return unanswered(problem) or wrong

    def _reference(self, problem: Problem) -> str | None:
        if (fault := self.refusal(problem)) is not None:
            raise InputError(fault)
        return self._alone(reference(problem))

    def _alone(self, answer: str) -> str | None:
        """The letter that an answer is, whatever stands around it; None if it is more than a letter."""
        letter = spelled(answer).strip("().:").upper()
        return letter if len(letter) == 1 and letter in self.letters else None
