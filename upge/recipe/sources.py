"""Text that remembers where each of its characters stands."""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from upge.recipe.faults import Place

LINE_BREAK = re.compile(r"\r\n|\n|\r")
"""YAML 1.2 counts these as line breaks and, unlike str.splitlines, no others."""

COMMAND_LINE = "command line"
"""The file name of places in an override."""


@dataclass(frozen=True)
class Source:
    """A YAML text with the means to tell a character's place from its index.

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
