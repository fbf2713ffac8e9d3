"""Which answers mean the same, where only a verifier can tell: greedily, and bounded in time."""

from __future__ import annotations

from collections.abc import Sequence

from upge_parts.rewards.answers import LONGEST, integer, spelled
from upge_parts.rewards.graders import Graders

COMPARED = 16
"""With how many classes a further answer is compared at most, the commonest first."""


def classes(answers: Sequence[str], graders: Graders) -> list[int]:
    """The class of each answer: that of the first earlier one which is spelled alike, or verifies against it.

    Two answers verify against each other if each does with the other as the reference. Integers are told apart without
    a verifier. An answer that can't be compared with 1 in the time of a question is only compared by spelling, and so
    are, from then on, two whose comparison failed: at most three questions for each different answer take their whole
    time in vain.
    """
    found: list[int] = []
    known: dict[str, int] = {}
    heads: dict[int, str] = {}
    for answer in answers:
        spelling = _plain(answer)
        if spelling not in known:
            known[spelling] = _class_of(answer, len(found), heads, graders)
        found.append(known[spelling])
    return found


def _class_of(answer: str, new: int, heads: dict[int, str], graders: Graders) -> int:
    """The class of an answer of a new spelling, by its verified head; `new` if there is none, and it is a head then."""
    others = {number: head for number, head in heads.items() if integer(answer) is None or integer(head) is None}
    others = dict(list(others.items())[:COMPARED])
    if len(answer) > LONGEST or (integer(answer) is None and graders.grade([("1", answer)]) == [None]):
        return new
    pairs = [pair for head in others.values() for pair in ((head, answer), (answer, head))]
    grades = graders.grade(pairs)
    failed = False
    for number, forth, back in zip(others, grades[::2], grades[1::2], strict=True):
        if forth == back == 1.0:
            return number
        if forth is None or back is None:
            failed = True
            del heads[number]
    if not failed:
        heads[new] = answer
    return new


def _plain(answer: str) -> str:
    """A spelling that answers share which are the same letter for letter, or the same integer."""
    whole = integer(answer)
    return spelled(answer) if whole is None else str(whole)
