"""The letter of a multiple choice."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pydantic import Field

from upge import Context, InputError, Problem, Reward
from upge_parts.rewards.answers import (
    MARKER,
    Thought,
    Where,
    boxed,
    conclusion,
    enclosed,
    reference,
    spelled,
    unanswered,
    without_end,
)


class Choice(Reward):
    r"""1 if the response chooses the reference answer's letter, else 0.

        R = 1[letter(response) = letter(reference)]

    The letter is searched for in this order, and the first place that exists decides:

    1. the last complete `\boxed{…}`, with a letter alone: `C`, `c`, `(C)`, `C.` or `\text{C}`; or the last
       `<answer>…</answer>`, with the same, or with a sentence for rules 2 and 3;
    2. directly after the last "answer is" or "answer:": a capital letter, as `C`, `(C)`, `**C**` or `$C$`;
    3. the last capital letter alone, in brackets or before a full stop, comma, colon or the line's end.

    A thought, up to `</think>`, is skipped. A response without any letter is wrong. A reference that is not in
    `letters` is refused.
    Units: dimensionless, {0, 1}. Source: exact match of letters, as for ARC and GPQA.
    """

    letters: str = Field(default="ABCDE", pattern="^[A-Z]+$")
    """The letters of the choices, capitals."""
    where: Where = "any"
    """The letter's place: boxed is rule 1, last is rules 2 and 3, any is all of them."""
    thought: Thought = "skip"
    """Whether the text up to the last `</think>` is skipped if something follows it, or read like the rest."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Choice]:
        yield self

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The reward of each (problem, response text) pair. Raises InputError for a reference that is no letter."""
        return [float(self.answer(text) == self._reference(problem)) for problem, text in pairs]

    def answer(self, text: str) -> str | None:
        """The letter that a response chooses, or None."""
        text = without_end(conclusion(text, self.thought))
        inside, tagged = (enclosed(text) if self.where != "last" else None) or (None, False)
        if inside is not None:
            box = boxed(inside) if tagged else inside
            if box is not None or self._alone(inside) is not None:
                return self._alone(inside if box is None else box)
        if inside is None and self.where == "boxed":
            return None
        return self._last(text if inside is None else inside)

    def _last(self, text: str) -> str | None:
        """The letter by rules 2 and 3."""
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
