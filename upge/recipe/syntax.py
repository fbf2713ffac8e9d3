"""ruamel.yaml's syntax errors, said in words that help someone who writes a recipe."""

from __future__ import annotations

import re

from ruamel.yaml.error import MarkedYAMLError

from upge.recipe.faults import Fault, Place
from upge.recipe.sources import LINE_BREAK, Source

_SAID_PLAINLY = (
    # (a part of ruamel's problem, what we say, what helps); the first that fits is taken.
    (r"found character '\t'", "a tab where YAML wants spaces", "indent with spaces"),
    ("mapping values are not allowed", "a ':' where no value can start", "put a text that holds ': ' in quotes"),
    ("sequence entries are not allowed", "a '-' where no list can start", "write [a, b], or the list on its own lines"),
    ("could not find expected ':'", "a line without ':'", "write key: value"),
    ("cannot start any token", "an unquoted text cannot start with this character", "put the text in quotes"),
    (
        "found unknown escape character",
        "an unknown escape in a double-quoted text",
        "use single quotes, or double the \\",
    ),
    (
        "expected '<document start>'",
        "this does not belong to what stands above it",
        "check the indentation: all blocks of a recipe start in the same column",
    ),
    ("found undefined alias", "aliases (*name) have no meaning in a recipe", "write the value out"),
    ("expected the node content", "a value is missing here", None),
    ("undefined tag handle", "tags (!name) have no meaning in a recipe", "remove the tag"),
)


def syntax_fault(error: Exception, source: Source, seen: int) -> Fault:
    """What to say of `error`, which the YAML parser raised; `seen` is the index up to which all was well."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return Fault(f"this is not YAML ({error})", source.place(seen))
    start: int = error.problem_mark.index
    problem = str(error.problem)
    opened: int | None = None if error.context_mark is None else error.context_mark.index
    if (tab := _tab_in_indentation(source.text, start)) is not None:
        return Fault("a tab where YAML wants spaces", source.place(tab), "indent with spaces")
    if source.text[max(0, start - 1) : start + 1] == "${":
        remedy = 'give the value on the command line, where the shell fills it in: key="$NAME"'
        return Fault("a recipe has no variables, ${NAME}", source.place(start - 1), remedy)
    if opened is not None and problem.startswith(("expected ',' or ']'", "expected ',' or '}'")):
        return _unclosed(problem, source.place(start), source.place(opened))
    if opened is not None and "quoted scalar" in str(error.context) and "end of stream" in problem:
        return Fault("a quote that is never closed", source.place(opened))
    if "mapping values are not allowed" in problem and (place := _first_key(source, start)) is not None:
        message = "this is indented deeper than the line above, which has its value already"
        return Fault(message, place, "check the indentation of both lines")
    if opened is not None and problem.startswith("expected <block end>"):
        return _stray(problem, source, start, in_list="collection" in str(error.context))
    for part, message, hint in _SAID_PLAINLY:
        if part in problem:
            return Fault(message, source.place(start), hint)
    return Fault(f"this is not YAML: {problem}", source.place(start))


def _unclosed(problem: str, place: Place, opened: Place) -> Fault:
    """A bracket that opens at `opened` is not closed, or a comma missing, before `place`."""
    bracket = problem.removeprefix("expected ',' or ")[:3]
    kind = "list" if "]" in bracket else "map"
    message = f"expected ',' or {bracket} in the {kind} that opens at line {opened.line}"
    return Fault(message, place, f"close it with {bracket}" if opened.line < place.line else None)


def _first_key(source: Source, colon: int) -> Place | None:
    """The key before `colon`, if that is the first of its line and another line stands above; else None."""
    *above, line = LINE_BREAK.split(source.text[:colon])
    if not above or ": " in line or not line.strip():
        return None
    return source.place(colon - len(line.lstrip(" -")), colon)


def _stray(problem: str, source: Source, start: int, *, in_list: bool) -> Fault:
    """What stands at `start` is no member of the block or list that is open there."""
    found = problem.rpartition("found ")[2].strip("'")
    if found in ("}", "]", ","):
        return Fault(f"a '{found}' that no bracket was opened for", source.place(start))
    if found == "<scalar>":
        return Fault("a second text behind a value that has ended", source.place(start), "check the quotes")
    word = re.compile(r"[^\s:#]+").match(source.text, start)
    place = source.place(start, word.end() if word else None)
    if in_list:
        return Fault(
            "this does not belong to the list above it", place, "check the indentation; an item starts with '- '"
        )
    above = " or ".join(f"{column} (line {line})" for line, column in _columns_above(source.text, start))
    hint = f"check the indentation: this starts in column {place.column}, what is above it in {above}"
    return Fault("this does not belong to the block above it", place, hint)


def _columns_above(text: str, index: int) -> list[tuple[int, int]]:
    """(line, column) of the lines above `index` whose blocks are open there, the outermost first."""
    found: list[tuple[int, int]] = []
    for number, line in reversed(list(enumerate(LINE_BREAK.split(text[:index])[:-1], start=1))):
        column = len(line) - len(line.lstrip()) + 1
        blank = not line.strip() or line.lstrip().startswith("#")
        if not blank and (not found or column < found[0][1]):
            found.insert(0, (number, column))
    return found


def _tab_in_indentation(text: str, index: int) -> int | None:
    """The index of the first tab among the blanks that the line of `index` starts with; None without one."""
    start = max(text.rfind("\n", 0, index), text.rfind("\r", 0, index)) + 1
    line = text[start:].split("\n", 1)[0]
    tab = line[: len(line) - len(line.lstrip(" \t"))].find("\t")
    return None if tab < 0 else start + tab
