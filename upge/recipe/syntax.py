"""ruamel.yaml's syntax errors, said in words that help someone who writes a recipe."""

from __future__ import annotations

from ruamel.yaml.error import MarkedYAMLError

from upge.recipe.faults import Fault
from upge.recipe.sources import Source

_SAID_PLAINLY = (
    # (a part of ruamel's problem, what we say, what helps); the first that fits is taken.
    (r"found character '\t'", "a tab where YAML wants spaces", "indent with spaces"),
    ("mapping values are not allowed", "a ':' where no value can start", "check the indentation; quote text with ': '"),
    ("sequence entries are not allowed", "a '-' where no list can start", "write [a, b], or the list on its own lines"),
    ("could not find expected ':'", "a line without ':'", "write key: value"),
    ("cannot start any token", "an unquoted text cannot start with this character", "put the text in quotes"),
    (
        "found unknown escape character",
        "an unknown escape in a double-quoted text",
        "use single quotes, or double the \\",
    ),
    ("expected <block end>", "this does not belong to the block above it", "check the indentation and the quotes"),
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
    if opened is not None and problem.startswith(("expected ',' or ']'", "expected ',' or '}'")):
        kind = "list" if "']'" in problem[:20] else "map"
        message = f"{problem[:19]} in the {kind} that opens at line {source.place(opened).line}"
        return Fault(message, source.place(start))
    if opened is not None and "quoted scalar" in str(error.context) and "end of stream" in problem:
        return Fault("a quote that is never closed", source.place(opened))
    for part, message, hint in _SAID_PLAINLY:
        if part in problem:
            return Fault(message, source.place(start), hint)
    return Fault(f"this is not YAML: {problem}", source.place(start))


def _tab_in_indentation(text: str, index: int) -> int | None:
    """The index of the first tab among the blanks that the line of `index` starts with; None without one."""
    start = max(text.rfind("\n", 0, index), text.rfind("\r", 0, index)) + 1
    line = text[start:].split("\n", 1)[0]
    tab = line[: len(line) - len(line.lstrip(" \t"))].find("\t")
    return None if tab < 0 else start + tab
