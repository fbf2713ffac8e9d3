"""Faults of a recipe with their places, and the error that lists them all."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

_SHOWN = 100
"""Characters of a source line that a fault shows; a longer line is cut around the caret."""

_LONGEST = 1000
"""Characters of a message or a hint that are shown."""

_MOST = 50
"""The largest number of faults in an error's text."""


@dataclass(frozen=True)
class Place:
    """A position in a file or on the command line; `str()` is `file:line:column`.

    Attributes:
        file: the file's name as the reader knows it, or "command line".
        line: from 1; on the command line, which override.
        column: from 1, in characters.
        text: the whole source line, without its line break.
        width: how many characters the caret underlines.
    """

    file: str
    line: int
    column: int
    text: str
    width: int = 1

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Fault:
    """One problem: what is wrong, where, and what would be right. `str()` draws the source line with a caret.

    Attributes:
        message: what is wrong, in one line.
        place: where; None if it is no place in a text.
        hint: what to write instead.
    """

    message: str
    place: Place | None
    hint: str | None = None

    def __str__(self) -> str:
        lines = [self.message] if self.place is None else [f"{self.place}: {self.message}", *_excerpt(self.place)]
        if self.hint is not None:
            lines.append(f"   {self.hint}")
        return "\n".join(_printable(line if len(line) <= _LONGEST else line[:_LONGEST] + "...") for line in lines)


class RecipeError(ValueError):
    """A recipe cannot be used; `str()` shows every fault, of very many the first.

    Attributes:
        faults: each once, in reading order: those without a place first, then file by file (in the order in which the
            files were first given), each by line and column.
    """

    def __init__(self, faults: Iterable[Fault]) -> None:
        self.faults: tuple[Fault, ...] = _in_reading_order(faults)
        super().__init__(self.faults)

    def __str__(self) -> str:
        shown = [str(fault) for fault in self.faults[:_MOST]]
        if len(self.faults) > 1:
            first = f", of which these are the first {_MOST}" if len(self.faults) > _MOST else ""
            shown.append(f"{len(self.faults)} problems{first}")
        return "\n".join(shown)


def quoted(text: str) -> str:
    """`text` in quotes for a message, cut to a readable length."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _in_reading_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    once = tuple(dict.fromkeys(faults))
    files: dict[str, int] = {}
    for fault in once:
        if fault.place is not None:
            files.setdefault(fault.place.file, len(files))

    def position(fault: Fault) -> tuple[int, int, int]:
        place = fault.place
        return (-1, 0, 0) if place is None else (files[place.file], place.line, place.column)

    return tuple(sorted(once, key=position))


def _excerpt(place: Place) -> list[str]:
    """The source line and the line with the caret; nothing for a blank line, where there is nothing to see."""
    if not place.text.strip():
        return []
    text, start = _window(place.text, place.column - 1)
    margin = f"   {place.line} | "
    carets = "^" * max(1, _width(text[start : start + place.width]))
    return [margin + text, " " * len(margin) + _blank(text[:start]) + carets]


def _window(text: str, start: int) -> tuple[str, int]:
    """At most `_SHOWN` characters of `text` around `start`, and the position of `start` in them."""
    if len(text) <= _SHOWN:
        return text, start
    first = max(0, min(start - _SHOWN // 2, len(text) - _SHOWN))
    before = "..." if first > 0 else ""
    after = "..." if first + _SHOWN < len(text) else ""
    return before + text[first : first + _SHOWN] + after, len(before) + start - first


def _blank(text: str) -> str:
    """Space as wide as `text` is on a terminal: a tab stays a tab, a CJK character takes two columns."""
    return "\t".join(" " * _width(piece) for piece in text.split("\t"))


def _width(text: str) -> int:
    """The width of a text in columns of a terminal."""
    from rich.cells import cell_len  # only an error needs it, and `validate` starts faster without

    return cell_len(text)


def _printable(line: str) -> str:
    """`line` with what would move or recolour a terminal's cursor replaced."""
    return "".join(c if c.isprintable() or c == "\t" else "\N{REPLACEMENT CHARACTER}" for c in line)


LINE_BREAK = re.compile(r"\r\n|\n|\r")
"""YAML 1.2 counts these as line breaks and, unlike str.splitlines, no others."""

COMMAND_LINE = "command line"
"""The file name of places in an override."""


@dataclass(frozen=True)
class Source:
    """A YAML text that converts the index of a character to its place.

    Attributes:
        name: the file name of its places.
        text: the YAML.
        override: None for a file; otherwise which override this is (from 1), and then every place is on that "line".
        before: the part of the override that precedes the YAML: `train.steps=` of `train.steps=10`.
    """

    name: str
    text: str
    override: int | None = None
    before: str = ""

    def place(self, start: int, end: int | None = None) -> Place:
        """The place of `text[start:end]`, or of one character; a start behind the last text moves back to its end."""
        start = min(start, self._end)
        end = start + 1 if end is None else end
        if self.override is not None:
            return Place(self.name, self.override, len(self.before) + start + 1, self._whole, max(1, end - start))
        line = bisect_right(self._starts, start) - 1
        text = self._lines[line]
        column = start - self._starts[line]
        return Place(self.name, line + 1, column + 1, text, max(1, min(end - start, len(text) - column)))

    # A long line may have thousands of places, which share its text.

    @cached_property
    def _whole(self) -> str:
        return self.before + self.text

    @cached_property
    def _end(self) -> int:
        return len(self.text.rstrip())

    @cached_property
    def _starts(self) -> list[int]:
        """The index at which each line starts."""
        return [0, *(match.end() for match in LINE_BREAK.finditer(self.text))]

    @cached_property
    def _lines(self) -> list[str]:
        return LINE_BREAK.split(self.text)
