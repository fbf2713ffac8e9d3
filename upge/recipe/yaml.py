"""YAML with places: recipe files and texts to trees of nodes, by YAML 1.2, with every problem reported at its place."""

from __future__ import annotations

import functools
import math
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

from upge.recipe.faults import LINE_BREAK, Fault, Place, RecipeError, Source, quoted
from upge.suggestions import nearest


@dataclass(frozen=True)
class Node:
    """A value of a recipe with its places.

    Attributes:
        value: a map by key, a list as a tuple, or a scalar.
        place: of the value; the root's is the file's first character; an empty value has the place of its key.
        key: the place of the key that holds the value; None for the root and the items of a list.
    """

    value: dict[str, Node] | tuple[Node, ...] | Scalar
    place: Place
    key: Place | None = None


def plain(node: Node) -> Any:
    """The node's data without places: a map is a dict, a list a tuple."""
    if isinstance(node.value, dict):
        return {key: plain(value) for key, value in node.value.items()}
    if isinstance(node.value, tuple):
        return tuple(plain(item) for item in node.value)
    return node.value


def describe(node: Node) -> str:
    """The kind of a node, for messages: "a map", "the number 3"."""
    match node.value:
        case dict():
            return "a map"
        case tuple():
            return f"a list of {len(node.value)}"
        case str():
            return f"the text {quoted(node.value)}"
        case bool():
            return f"the truth value {str(node.value).lower()}"
        case None:
            return "null"
    return f"the number {quoted(str(node.value))[1:-1]}"


Scalar = str | int | float | bool | None
"""What a scalar can be; a string is the rule and the others are exceptions to it."""

_WORDS: dict[str, Scalar] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
    **dict.fromkeys((".inf", ".Inf", ".INF", "+.inf", "+.Inf", "+.INF"), math.inf),
    **dict.fromkeys(("-.inf", "-.Inf", "-.INF"), -math.inf),
    **dict.fromkeys((".nan", ".NaN", ".NAN"), math.nan),
}
_DECIMAL = re.compile(r"[-+]?[0-9]+")
_OCTAL = re.compile(r"0o[0-7]+")
_HEXADECIMAL = re.compile(r"0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")

_LONGEST_NUMBER = 400
"""Characters; beyond any float's digits, and far below the length at which Python refuses to convert an integer."""


def resolve(text: str) -> Scalar:
    """The value of an unquoted scalar: `1e-6` is a float and `012` the integer 12; `no` and `1_000` are strings.

    Raises:
        ValueError: a number that is too long, or too large for a float (`1e999`), with the reason.
    """
    if text in _WORDS:
        return _WORDS[text]
    if _FLOAT.fullmatch(text) is None and _OCTAL.fullmatch(text) is None and _HEXADECIMAL.fullmatch(text) is None:
        return text
    if len(text) > _LONGEST_NUMBER:
        raise ValueError(f"a number of {len(text)} characters")
    return _number(text)


def _number(text: str) -> int | float:
    if _OCTAL.fullmatch(text):
        return int(text[2:], 8)
    if _HEXADECIMAL.fullmatch(text):
        return int(text[2:], 16)
    if _DECIMAL.fullmatch(text):
        return int(text)
    if math.isinf(value := float(text)):
        raise ValueError(f"{text} is too large for a float")
    return value


_MESSAGES = (
    # (a part of ruamel's message, our message, our hint); the first that fits is used.
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
        "this doesn't fit the lines above it",
        "check the indentation: all blocks of a recipe start in the same column",
    ),
    ("found undefined alias", "aliases (*name) have no meaning in a recipe", "write the value out"),
    ("expected the node content", "a value is missing here", None),
    ("undefined tag handle", "tags (!name) have no meaning in a recipe", "remove the tag"),
)


def syntax_fault(error: Exception, source: Source, seen: int) -> Fault:
    """The fault for `error` of the YAML parser; `seen` is the index of the last valid token."""
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
    for part, message, hint in _MESSAGES:
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
    """The key before `colon`, if it is the first of its line and there is a line above; else None."""
    *above, line = LINE_BREAK.split(source.text[:colon])
    if not above or ": " in line or not line.strip():
        return None
    return source.place(colon - len(line.lstrip(" -")), colon)


def _stray(problem: str, source: Source, start: int, *, in_list: bool) -> Fault:
    """The fault that the text at `start` is no member of the open block or list."""
    character = problem.rpartition("found ")[2].strip("'")
    if character in ("}", "]", ","):
        return Fault(f"a '{character}' that no bracket was opened for", source.place(start))
    if character == "<scalar>":
        return Fault("a second text behind a value that has ended", source.place(start), "check the quotes")
    word = re.compile(r"[^\s:#]+").match(source.text, start)
    place = source.place(start, word.end() if word else None)
    if in_list:
        return Fault("this isn't part of the list above it", place, "check the indentation; an item starts with '- '")
    above = " or ".join(f"{column} (line {line})" for line, column in _columns_above(source.text, start))
    hint = f"check the indentation: this starts in column {place.column}, what is above it in {above}"
    return Fault("this isn't part of the block above it", place, hint)


def _columns_above(text: str, index: int) -> list[tuple[int, int]]:
    """(line, column) of the lines above `index` whose blocks are open there, the outermost first."""
    columns: list[tuple[int, int]] = []
    for number, line in reversed(list(enumerate(LINE_BREAK.split(text[:index])[:-1], start=1))):
        column = len(line) - len(line.lstrip()) + 1
        blank = not line.strip() or line.lstrip().startswith("#")
        if not blank and (not columns or column < columns[0][1]):
            columns.insert(0, (number, column))
    return columns


def _tab_in_indentation(text: str, index: int) -> int | None:
    """The index of the first tab among the blanks that the line of `index` starts with; None without one."""
    start = max(text.rfind("\n", 0, index), text.rfind("\r", 0, index)) + 1
    line = text[start:].split("\n", 1)[0]
    tab = line[: len(line) - len(line.lstrip(" \t"))].find("\t")
    return None if tab < 0 else start + tab


MAX_DEPTH = 32
"""The largest depth of nested maps and lists, the root included."""

MAX_NODES = 10_000
"""How many keys and values a text may have."""


_ACCOUNT = re.compile(r"://[^/@\s]+@")
"""The part before the host in `https://user:password@host`."""


_VARIABLE = re.compile(r"(?<!\S)[^\s${}]*(\$\{(?:oc\.)?[A-Za-z_][\w.]*(?:[:,][^{}\s]*)?\})(?!\S*\$)[^\s$]*(?!\S)")
"""`${NAME}`, as shells, OmegaConf and Hydra write it, in a word without other dollar signs, as formulas have."""


class _StopReadingError(Exception):
    """Reading can't continue; the reason is among the faults."""


class TreeBuilder:
    """Builds the tree of one document, and collects faults."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.faults: list[Fault] = []
        self._seen = 0
        self._nodes = 0
        self._events = self._checked_events()

    def document(self) -> Node | None:
        """The first document's root; None if there is none or reading had to stop."""
        root = None
        try:
            for event in self._events:
                if not isinstance(event, DocumentStartEvent):
                    continue
                self._check_document(event, first=root is None)
                root = self._node(next(self._events), None, 1)
        except _StopReadingError:
            return None
        return root

    def _checked_events(self) -> Iterator[Event]:
        try:
            for event in YAML(typ="safe", pure=True).parse(self.source.text):
                self._seen = event.end_mark.index
                yield event
        # Besides its own errors ruamel lets others through (OverflowError for "\UFFFFFFFF", AssertionError for
        # "%YAML 1.3"); whatever it raises, the text is at fault.
        except Exception as error:
            self.faults.append(syntax_fault(error, self.source, self._seen))
            raise _StopReadingError from None

    def _check_document(self, event: DocumentStartEvent, *, first: bool) -> None:
        if event.version not in (None, (1, 2)):
            self._fault("recipes are YAML 1.2", self.source.place(0), "remove the %YAML line")
        if not first:
            self._fault("a recipe is one document; a second starts here", self._place(event), "remove this line")
            raise _StopReadingError

    def _node(self, event: Event, key: Place | None, depth: int) -> Node:
        """The node that `event` starts, read to its end."""
        place = self._place(event)
        self._count(place)
        self._check_properties(event, place)
        if isinstance(event, ScalarEvent):
            # The mark of an empty value is at the next token.
            place = key if key is not None and event.style is None and event.value == "" else place
            return Node(self._scalar(event, place), place, key)
        if isinstance(event, AliasEvent):
            return Node(f"*{event.anchor}", place, key)
        if depth > MAX_DEPTH:
            self._fault(f"maps and lists nest deeper than {MAX_DEPTH}", place)
            raise _StopReadingError
        if isinstance(event, MappingStartEvent):
            return Node(self._map(depth, flow=bool(event.flow_style)), place, key)
        return Node(self._list(depth), place, key)

    def _count(self, place: Place) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._fault(f"more than {MAX_NODES} keys and values", place)
            raise _StopReadingError

    def _map(self, depth: int, *, flow: bool) -> dict[str, Node]:
        members: dict[str, Node] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            name = self._node(event, None, depth + 1)
            node = self._node(next(self._events), name.place, depth + 1)
            fault = self._key_fault(name, event, members)
            if fault is None and flow:
                fault = _colon_fault(name, node)
            if fault is not None:
                self.faults.append(fault)
            elif isinstance(name.value, str):
                members[name.value] = node
        return members

    def _list(self, depth: int) -> tuple[Node, ...]:
        items = []
        while not isinstance(event := next(self._events), SequenceEndEvent):
            items.append(self._node(event, None, depth + 1))
        return tuple(items)

    def _key_fault(self, name: Node, event: Event, members: dict[str, Node]) -> Fault | None:
        """The reason why `name` can't be the next key of `members`; None if it can."""
        if not isinstance(name.value, str):
            text = event.value if isinstance(event, ScalarEvent) else ""
            hint = f"in quotes it is one: '{text}'" if text else None
            if isinstance(name.value, dict) and self.source.text.startswith("{{", event.start_mark.index - 1):
                hint = "a recipe isn't a template: write the value in place of {{ }}, or give it on the command line"
            return Fault(f"a key must be a text, not {describe(name)}", name.place, hint)
        start = event.start_mark.index
        if self.source.text[start - 1 : start] == "?":
            # YAML 1.2 reads {?a: 1} as the key "?a" and ruamel as "a"; we take it for neither.
            return Fault("a key cannot start with '?'", name.place, "put it in quotes")
        if name.value == "<<" and isinstance(event, ScalarEvent) and event.style is None:
            return Fault("merge keys (<<) have no meaning in a recipe", name.place, "use extends: other.yaml")
        if name.value in members and (first := members[name.value].key) is not None:
            where = f"line {first.line}, column {first.column}"
            return Fault(f"duplicate key {quoted(name.value)}; the first is at {where}", name.place)
        return None

    def _check_properties(self, event: Event, place: Place) -> None:
        if isinstance(event, AliasEvent):
            self._fault(f"aliases (*{event.anchor}) have no meaning in a recipe", place, "write the value out")
        elif isinstance(event, NodeEvent) and event.anchor is not None:
            self._fault(f"anchors (&{event.anchor}) have no meaning in a recipe", place, "remove the anchor")
        if isinstance(event, ScalarEvent | MappingStartEvent | SequenceStartEvent) and event.tag is not None:
            including = "include" in str(event.tag) or "import" in str(event.tag)
            hint = "write extends: other.yaml, at the top" if including else "remove the tag"
            self._fault(f"tags ({event.tag}) have no meaning in a recipe", place, hint)

    def _scalar(self, event: ScalarEvent, place: Place) -> Scalar:
        text: str = event.value
        try:
            if _ACCOUNT.search(text):
                self._fault("a name or a password in an address: the run folder would keep it", place, "take it out")
            if event.style is None and (variable := _VARIABLE.search(text)):  # in quotes it is text
                hint = 'give the value on the command line, where the shell fills it in: key="$NAME"; a text has quotes'
                self._fault(f"a recipe has no variables, and {variable[1]} would stay as it is", place, hint)
            if event.style is None:
                return resolve(text)
            # JSON writes a character beyond U+FFFF as two \u escapes; alone, neither of the two is a character.
            return text.encode("utf-16", "surrogatepass").decode("utf-16")
        except UnicodeDecodeError:
            self._fault("half of a character: a \\ud800 to \\udfff escape without its partner", place)
        except ValueError as error:
            self._fault(f"a number that cannot be used: {error}", place)
        return None

    def _place(self, event: Event) -> Place:
        start = event.start_mark.index
        # The end of a block isn't visible, so its first character is underlined.
        block = isinstance(event, MappingStartEvent | SequenceStartEvent) and not event.flow_style
        return self.source.place(start, start + 1 if block else event.end_mark.index)

    def _fault(self, message: str, place: Place, hint: str | None = None) -> None:
        self.faults.append(Fault(message, place, hint))


def _colon_fault(name: Node, node: Node) -> Fault | None:
    """`{low:0.2}` is one key without a value, and null removes, so it would vanish without a word."""
    key, colon, value = str(name.value).partition(":")
    if node.value is not None or node.place != node.key or not colon:
        return None
    return Fault(
        f"key {quoted(str(name.value))} has no value", name.place, f"write a blank after the ':', {key}: {value}"
    )


__all__ = ["MAX_BYTES", "Node", "describe", "parse", "parse_value", "plain", "read"]

MAX_BYTES = 1 << 17
"""How large a recipe may be, with all that it extends, in bytes: many times what one needs."""

# Everything but YAML's printable characters, lone surrogates included; and U+0085, a character to YAML 1.2 and a line
# break to ruamel.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read(path: Path, name: str | None = None, before: int = 0) -> Node:
    """The tree of a recipe file; its places call the file `name`, or as `path` spells it.

    `before` is how many bytes of the same recipe have been read from other files.

    Raises:
        RecipeError: with all faults, of the file itself or of `parse`.
    """
    name = str(path) if name is None else name
    return parse(_text(path, name, MAX_BYTES - before), name)


@functools.lru_cache(maxsize=32)  # recipes extend the same few files; nobody changes a node
def parse(text: str, name: str) -> Node:
    """The tree of a recipe's text, whose root must be a map; its places call the file `name`.

    Raises:
        RecipeError: every problem found: syntax errors (the first of them), forbidden characters, duplicate or
            non-string keys, anchors, aliases, merge keys, tags, several documents, too deep nesting, no map at all.
    """
    source = Source(name, text.removeprefix("\ufeff"))
    root = parse_value(source)
    if root is None:
        raise RecipeError([Fault("the file is empty", source.place(0), "write at least a name: and an estimator:")])
    if not isinstance(root.value, dict):
        message = f"a recipe is a map of blocks, not {describe(root)}"
        raise RecipeError([Fault(message, root.place, "write key: value lines")])
    return Node(root.value, source.place(0))


def parse_value(source: Source) -> Node | None:
    """The tree of any YAML value; None if there is nothing but blanks and comments.

    Raises:
        RecipeError: with all faults, as in `parse`.
    """
    faults = [_forbidden(source, match) for match in list(_FORBIDDEN.finditer(source.text))[:10]]
    if faults:
        raise RecipeError(faults)
    builder = TreeBuilder(source)
    root = builder.document()
    if builder.faults:
        raise RecipeError(builder.faults)
    return root


def _text(path: Path, name: str, limit: int) -> str:
    data = b""
    try:
        data = _bytes(path, limit)
        return data.decode()
    except UnicodeDecodeError as error:
        before = data[: error.start].decode()
        place = Source(name, before + data[error.start :].decode(errors="replace")).place(len(before))
        raise RecipeError([Fault(f"byte {data[error.start]:#04x} is not UTF-8", place)]) from None
    except FileNotFoundError:
        meant = nearest(path.name, [file.name for file in sorted(path.parent.glob("*.yaml"))])
        hint = None if meant is None else f"did you mean '{path.with_name(meant)}'?"
        raise RecipeError([Fault("there is no such file", Place(name, 1, 1, ""), hint)]) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise RecipeError([Fault(f"cannot read this file: {reason}", Place(name, 1, 1, ""))]) from None


def _bytes(path: Path, limit: int) -> bytes:
    # Opening a pipe or a device may block or never end, so what it is comes first.
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is a folder" if path.is_dir() else "it is no regular file")
    with path.open("rb") as file:
        data = file.read(max(0, limit) + 1)
    if len(data) > limit:
        raise ValueError(f"{'it' if limit == MAX_BYTES else 'the recipe, with it,'} is larger than {MAX_BYTES} bytes")
    return data


def _forbidden(source: Source, match: re.Match[str]) -> Fault:
    message = f"the character U+{ord(match[0]):04X} is not allowed"
    return Fault(message, source.place(match.start()), r'in double quotes it may be written as an escape, "\x07"')
