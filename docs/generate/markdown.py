"""Docstrings and tables as Markdown. Our docstrings are Markdown already, but for their sections in Google's style."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence

ARXIV = re.compile(r"(?<!\[)arXiv (\d{4}\.\d{5})")
_SECTION = re.compile(r"(Args|Attributes|Class variables|Raises|Returns|Yields):(?: (?=\S+: )|\n)")
_NEXT_NAME = re.compile(r"(?<=\.) (?=[a-z_]+(?:, [a-z_]+)*: )")
"""Where one line of a section goes on to another name: `terms: per term. step: the rollout batch's index.`"""


def prose(docstring: str | None) -> str:
    """A docstring as Markdown: indented blocks stand alone, and `Args:` and its like become lists."""
    blocks = re.split(r"\n\n+", apart(inspect.cleandoc(docstring or "")))
    return with_links("\n\n".join(_list(block) for block in blocks))


def section(block: str) -> tuple[str, list[str]] | None:
    """The title of a block that starts as `Args:` does, and its entries; None where it starts otherwise."""
    if not (found := _SECTION.match(block)):
        return None
    lines = _unfolded(textwrap.dedent(block[found.end() :]))
    return found[1], [entry for line in lines for entry in _NEXT_NAME.split(line)]


def _list(block: str) -> str:
    """A section as a list; any other block as it is."""
    if not (found := section(block)):
        return block
    title, entries = found
    return f"{title}:\n\n" + "\n".join(f"- {_entry(entry)}" for entry in entries)


def _unfolded(text: str) -> list[str]:
    """The entries of a section, each in one line; what continues an entry is indented."""
    return re.sub(r"\n\s+", " ", text).split("\n")


def _entry(text: str) -> str:
    names, colon, rest = text.partition(": ")
    if not colon:
        return text
    return ", ".join(f"`{name}`" for name in names.split(", ")) + f": {rest}"


def apart(text: str) -> str:
    """The text with an empty line where an indented formula follows its sentence without one."""
    return re.sub(rf"^(?!{_SECTION.pattern})(\S.*)\n(?=    )", r"\2\n\n", text, flags=re.MULTILINE)


def with_links(text: str) -> str:
    """The text with links to the papers that it names by their number."""
    return ARXIV.sub(r"[arXiv \1](https://arxiv.org/abs/\1)", text)


def one_line(text: str) -> str:
    """The text without line breaks."""
    return " ".join(text.split())


def cell(text: str) -> str:
    """The text as a cell of a table."""
    return one_line(text).replace("|", r"\|")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every row has as many cells as the head."""
    return "\n".join(_lines(head, rows))


def _lines(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield f"| {' | '.join(map(cell, row))} |"


def page(*blocks: str) -> str:
    """Blocks with an empty line between any two, and no empty blocks."""
    return "\n\n".join(block.rstrip().lstrip("\n") for block in blocks if block.strip()) + "\n"
