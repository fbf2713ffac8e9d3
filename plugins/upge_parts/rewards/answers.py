"""Where a response says its answer, and when two answers are the same letter for letter.

Everything here takes time linear in the response, so that no response can hold it up.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from upge import InputError, Problem

Where = Literal["boxed", "last", "any"]
"""Where the answer stands: in the last complete box or answer tags; last in the text; or in those, else last."""

Thought = Literal["skip", "read"]
"""Whether a thought in front of the answer is skipped or read like the rest."""

LONGEST = 1000
"""Characters of an answer that are read: a longer box is wrong, of a longer line its beginning or its end is read."""

MARKER = re.compile(
    r"(?<![^\W_])answer(?:[*_]{1,3})?\s{0,9}(?:is\b|[:：]|=(?!=))(?:\*{2,3}|__)?:?"
    r"|\bfinal answer\b[^.\n:=]{1,60}?\sis\b(?:\*\*)?:?|答案(?:\*{1,3})?\s{0,9}(?:[是为為][:：]?|[:：])(?:\*\*)?",
    re.IGNORECASE,
)
"""What announces an answer: "answer is", "answer:", "answer =", "final answer to … is", in bold or not; in Chinese."""

_THOUGHT = re.compile(
    r"<\s?/\s?(?:think|thinking|thought|thoughts|reasoning|reflection|seed:think)\s{0,9}>|\[/THINK\]|◁/think▷"
    r"|<\|(?:end_of_thought|/think|think_end)\|>|<\|channel\|>final<\|message\|>",
    re.IGNORECASE,
)
_TAG = re.compile(
    r"<(?P<close>/?)(?:final_)?answer\s{0,9}>|<\|(?:begin|(?P<end>end))_of_(?:box|solution)\|>", re.IGNORECASE
)
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s{0,9}\{)|\\.|[{}]", re.DOTALL)
_DISPLAYED = re.compile(r"\s*(?:\$\$(?P<dollars>(?:[^$]|\$(?!\$))*)\$\$|\\\[(?P<brackets>(?:[^\\]|\\(?!\]))*)\\\])")
_STATES = re.compile(r"\d|\$[^$]+\$|\\[(\[]")
_CLOSING_LINES = 8
_LAYERS = 40
"""How many layers of bold, boxes, full stops, … are taken off an answer; nobody writes so many."""
_OVER = re.compile(r"(?:\s|<\|(?:end|eo|im_end)[^\s|<>]{0,40}\|>|</s>|<(?:eos|end_of_turn)>)\Z")
_STOPS = ".,;:?。，；：？"
_HEADING = re.compile(r"\A(?:#\s+|#{2,6}\s*)(?=\S)")
_EMPHASIS = re.compile(r"(\*{1,3}|_{1,3})([^*_]+)\1")
_SET_OFF = re.compile(r"<(b|strong|i|em|u)>([^<>]*)</\1>", re.IGNORECASE)
_CHEER = re.compile(r"(?:[\u2600-\u27bf\U0001f000-\U0001faff\ufe0f]|\s[:;]-?[)D])\Z")
_WORDY = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|boldsymbol|mbox)\s{0,9}\{([^{}]*)\}")
_SETTING = re.compile(
    r"\\(?:left|right|displaystyle|limits)(?![a-zA-Z])|\\[,;:!]|\\(?=[\s%$])|(?<!\\)\\[()\[\]]|\$|(?<=\d)\{,\}(?=\d)"
)
_BLANKS = re.compile(r"(?<![\d\s~])[\s~]++|(?<![\s~])[\s~]++(?!\d)|(?<=\d)[\s~](?=\d{3}(?!\d))")


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


class Answer(NamedTuple):
    """An answer, and whether words like "the answer is" announce it."""

    text: str
    announced: bool


def conclusion(response: str, thought: Thought = "skip") -> str:
    """What comes behind the last thought of a response; all of it if nothing does, or thoughts are read."""
    if thought == "read":
        return response
    ends = [end.end() for end in _THOUGHT.finditer(response)]
    behind = response[ends[-1] :] if ends else ""
    return behind if without_end(behind) else response


def without_end(response: str) -> str:
    """A response without blanks and tokens such as `<|im_end|>` at its end, which aren't all end-of-sequence tokens."""
    end = len(response)
    while (over := _OVER.search(response, max(0, end - 64), end)) is not None:
        end = over.start()
    return response[:end]


def answer_in(response: str, where: Where, thought: Thought = "skip") -> str | None:
    """The part of a response that is its answer, None if there is none."""
    found = located(conclusion(response, thought), where)
    return None if found is None else found.text


def located(text: str, where: Where) -> Answer | None:
    """The answer in a text without a thought; None if there is none."""
    text = without_end(text)
    inside, tagged = (enclosed(text) if where != "last" else None) or (None, False)
    if inside is None and where == "boxed":
        return None
    if inside is not None:
        text = inside.strip()
        box = boxed(text) if tagged else text
        if box is not None:
            return Answer(box, False)
        if MARKER.search(text) is None and ("\n" not in text or text.startswith(r"\begin")):
            return Answer(text, False)
    found = announced(text)
    return Answer(found, True) if found is not None else Answer(ending(text)[-LONGEST:], False)


def enclosed(text: str) -> tuple[str, bool] | None:
    """What is in the last complete box or pair of answer tags that is in no other, and whether it is tags."""
    box = _last_box(text)
    tags: tuple[int, int] | None = None
    opened: int | None = None
    for tag in _TAG.finditer(text):
        if not tag["close"] and not tag["end"]:
            opened = tag.end()
        elif opened is not None:
            tags, opened = (opened, tag.start()), None
    if tags is not None and (box is None or tags[1] > box[0]):
        return text[tags[0] : tags[1]], True
    return None if box is None else (text[box[0] : box[1]], False)


def boxed(text: str) -> str | None:
    r"""What is in the last complete `\boxed{…}` or `\fbox{…}`; None where there is none."""
    box = _last_box(text)
    return None if box is None else text[box[0] : box[1]]


def _last_box(text: str) -> tuple[int, int] | None:
    opened: list[int | None] = []
    found = None
    for brace in _BRACES.finditer(text):
        if brace["box"] is not None:
            opened.append(brace.end())
        elif brace[0] == "{":
            opened.append(None)
        elif brace[0] == "}" and opened and (start := opened.pop()) is not None:
            found = start, brace.start()
    return found


def announced(text: str) -> str | None:
    """What follows the last marker, to the end of its line or displayed formula; None without a marker."""
    ends = [marker.end() for marker in MARKER.finditer(text)]
    return _first_line(text[ends[-1] :])[:LONGEST] if ends else None


def ending(text: str) -> str:
    """The displayed formula that a text ends with, or else its last line that isn't empty.

    Before a closing sentence without a number or a formula, as "I hope this helps!", it is the last line with one.
    """
    text = text.rstrip()
    formula = text.removesuffix(".")
    for left, right in (("$$", "$$"), (r"\[", r"\]")):
        if formula.endswith(right) and (start := formula.rfind(left, 0, -2)) >= 0:
            return formula[start + 2 : -2].strip()
    lines = [line for line in text.rsplit("\n", _CLOSING_LINES)[-_CLOSING_LINES:] if line.strip()] or [""]
    stated = [line for line in lines if _STATES.search(line)]
    closing = len(lines[-1].split()) > 2 and not _STATES.search(lines[-1])
    return (stated[-1] if stated and closing else lines[-1]).strip()


def _first_line(text: str) -> str:
    displayed = _DISPLAYED.match(text)
    if displayed is not None:
        return (displayed["dollars"] or displayed["brackets"] or "").strip()
    return text.lstrip().partition("\n")[0].strip()


def unwrapped(answer: str) -> str:
    r"""An answer without the full stop behind it, or the box, the dollars, the bold and the answer tags around it.

    `$\boxed{4}$.` → `4`
    """
    for _ in range(_LAYERS):  # each costs the length, and a response may have any number of them
        inner = _SET_OFF.sub(r"\2", _TAG.sub("", answer)).strip().strip("`")
        cheer = _CHEER.search(inner, max(0, len(inner) - 4))
        inner = _HEADING.sub("", inner if cheer is None else inner[: cheer.start()]).strip()
        inner = inner if inner[-2:-1] == "\\" else inner.rstrip(_STOPS).strip()
        emphasis = _EMPHASIS.fullmatch(inner)
        inner = (emphasis[2] if emphasis else inner.removeprefix("**").removesuffix("**")).strip()
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
            break
        answer = inner
    return answer


def spelled(answer: str) -> str:
    r"""An answer without what only sets it in type: blanks, dollars, `\left`, `\,`, `\text{…}`, dfrac for frac.

    Two answers that are equal so are the same answer; the reverse doesn't hold. Blanks between digits stay, but for
    those of thousands: `1 2` isn't `12`.
    """
    words = _WORDY.sub(r"\1", unwrapped(answer))
    fractions = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", words)
    return unwrapped(_BLANKS.sub("", _SETTING.sub("", fractions)))


def integer(answer: str) -> int | None:
    """The integer of up to 9 digits that an answer is, and nothing else; two such need no verifier."""
    plain = unwrapped(answer)
    return int(plain) if re.fullmatch(r"[-+]?[0-9]{1,9}", plain) else None
