"""How a template begins the response itself, as many do with `<think>`, and what of a demonstration repeats that."""

from __future__ import annotations

import re

_TAG = re.compile(r"<[^<>\s/][^<>\s]*>|\[[A-Z_]+\]|◁[^◁▷\s/]+▷")
"""What opens a part of a response in a chat template's words: `<think>`, `[THINK]`, `◁think▷`."""

_TAGS = re.compile(r"(?:<(?!(?:assistant|bot|model|user|human|system)>)[a-z][\w.:-]*>\s*)+\Z", re.IGNORECASE)
"""The tags that a plain template ends with. `<|assistant|>` and the like are no part of the response."""

_LONGEST = 2000
"""Characters of a template's end that a demonstration may repeat."""


def tags_at_end(text: str) -> str:
    """The tags that a text ends with, `<think>` and a line break, say; "" where it ends otherwise."""
    found = _TAGS.search(text)
    return found[0] if found else ""


def repeated(tail: str, opening: str, text: str) -> int:
    """How many characters at the beginning of a demonstration are at the end of its prompt already.

    What counts is the template's own: `tail` is what it writes after the last message, and `opening`, the end of that,
    is how it begins the response. White space around what is repeated may differ.

        tail "Assistant: <think>\\n", opening "<think>\\n", text "<think>2 + 2"  →  7
    """
    core, body = opening.strip(), text.lstrip()
    if not core or not body:
        return 0
    tail = tail[-_LONGEST:]
    gap = tail[len(tail.rstrip()) :]
    for start, character in enumerate(tail):
        piece = tail[start:].rstrip() if character == body[0] else ""
        if piece and body.startswith(piece) and _opens(piece, core) and not _within_word(body, len(piece)):
            rest = body[len(piece) :]
            space = len(gap) if rest.startswith(gap) else len(rest) - len(rest.lstrip())
            return len(text) - len(rest) + space
    return 0


def _opens(piece: str, core: str) -> bool:
    """Whether a piece of the template's end has all of the opening, or begins at one of its tags."""
    return piece.endswith(core) or _TAG.match(piece) is not None


def _within_word(text: str, place: int) -> bool:
    return text[place - 1].isalnum() and text[place : place + 1].isalnum()
