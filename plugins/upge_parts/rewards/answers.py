"""Where a response says its answer, and when two answers are the same letter for letter.

Everything here takes time linear in the response, so that no response can hold it up.
"""

from __future__ import annotations

import re
from typing import Literal

from upge import InputError, Problem

Where = Literal["boxed", "last", "any"]
"""Where the answer stands: in the last complete box; last in the text; in the box if there is one, else last."""

LONGEST = 1000
"""Characters of an answer that are read: a longer box is wrong, of a longer line its beginning or its end is read."""

MARKER = re.compile(r"\banswer(?:\*\*)?\s{0,9}(?:is\b|[:=])(?:\*\*)?:?", re.IGNORECASE)
"""What announces an answer: "answer is", "answer:", "answer =", also in bold."""

_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s{0,9}\{)|\\.|[{}]", re.DOTALL)
_DISPLAYED = re.compile(r"\s*(?:\$\$(?P<dollars>[^$]*)\$\$|\\\[(?P<brackets>(?:[^\\]|\\(?!\]))*)\\\])")
_WORDY = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox)\s{0,9}\{([^{}]*)\}")
_SETTING = re.compile(
    r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|\\[,;:!]|\\(?=[\s%$])|(?<!\\)\\[()\[\]]|[\s~$]|(?<=\d)\{,\}(?=\d)"
)


def unanswered(problem: Problem) -> str | None:
    """What to say of a problem that has no answer; None where it has one. An answer of blanks is none."""
    has = problem.answer is not None and problem.answer.strip()
    fault = "has no answer to compare with: give it one, or choose a reward that compares nothing"
    return None if has else f"{problem.named} {fault}"


def reference(problem: Problem) -> str:
    """A problem's answer. Raises InputError where it has none."""
    if (fault := unanswered(problem)) is not None:
        raise InputError(fault)
    return str(problem.answer)


def answer_in(response: str, where: Where) -> str | None:
    """The part of a response that is its answer, None if there is none."""
    box = boxed(response) if where != "last" else None
    if box is not None or where == "boxed":
        return box
    found = announced(response)
    return found if found is not None else ending(response)[-LONGEST:]


def boxed(text: str) -> str | None:
    r"""What is in the last complete `\boxed{…}` or `\fbox{…}`; None where there is none."""
    opened: list[int | None] = []
    found = None
    for brace in _BRACES.finditer(text):
        if brace["box"] is not None:
            opened.append(brace.end())
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened and (start := opened.pop()) is not None:
            found = text[start : brace.start()]
    return found


def announced(text: str) -> str | None:
    """What follows the last marker, to the end of its line or displayed formula; None without a marker."""
    ends = [marker.end() for marker in MARKER.finditer(text)]
    return _first_line(text[ends[-1] :])[:LONGEST] if ends else None


def ending(text: str) -> str:
    """The displayed formula that a text ends with, or else its last line that isn't empty."""
    text = text.rstrip()
    formula = text.removesuffix(".")
    for left, right in (("$$", "$$"), (r"\[", r"\]")):
        if formula.endswith(right) and (start := formula.rfind(left, 0, -2)) >= 0:
            return formula[start + 2 : -2].strip()
    return text.rpartition("\n")[2].strip()


def _first_line(text: str) -> str:
    displayed = _DISPLAYED.match(text)
    if displayed is not None:
        return (displayed["dollars"] or displayed["brackets"] or "").strip()
    return text.lstrip().partition("\n")[0].strip()


def unwrapped(answer: str) -> str:
    r"""An answer without the full stop behind it, or the box, the dollars and the bold around it.

    `$\boxed{4}$.` → `4`
    """
    while True:
        inner = answer.strip().removesuffix(".").strip().removeprefix("**").removesuffix("**").strip()
        for left, right in (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]")):
            body = inner[len(left) : -len(right)]
            if inner == left + body + right and body and left not in body and not body.endswith("\\"):
                inner = body
                break
        if inner.startswith((r"\boxed", r"\fbox")) and inner.endswith("}"):
            content = boxed(inner)
            if content is not None and inner == inner[: inner.index("{") + 1] + content + "}":
                inner = content
        if inner == answer:
            return answer
        answer = inner


def spelled(answer: str) -> str:
    r"""An answer without what only sets it in type: blanks, dollars, `\left`, `\,`, `\text{…}`, dfrac for frac.

    Two answers that are equal so are the same answer; the reverse doesn't hold.
    """
    words = _WORDY.sub(r"\1", unwrapped(answer))
    fractions = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", words)
    return unwrapped(_SETTING.sub("", fractions))


def integer(answer: str) -> int | None:
    """The integer of up to 9 digits that an answer is, and nothing else; two such need no verifier."""
    plain = unwrapped(answer)
    return int(plain) if re.fullmatch(r"[-+]?[0-9]{1,9}", plain) else None
