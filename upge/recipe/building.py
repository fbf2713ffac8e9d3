"""YAML text to the tree of nodes; everything a recipe may not hold is refused.

We build the tree from the parser's events and not from its composed nodes: events still show what composing resolves
or loses (aliases, explicit tags, further documents), and they let us stop at the depth bound before Python's does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from ruamel.yaml import YAML
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

from upge.recipe.faults import Fault, Place, quoted
from upge.recipe.nodes import Node, describe
from upge.recipe.scalars import Scalar, resolve
from upge.recipe.sources import Source
from upge.recipe.syntax import syntax_fault

MAX_DEPTH = 32
"""How many maps and lists may stand inside one another, the root included."""

MAX_NODES = 10_000
"""How many keys and values a text may have."""


_ACCOUNT = re.compile(r"://[^/@\s]+@")
"""What stands before the host in `https://user:password@host`."""


_VARIABLE = re.compile(r"(?<!\S)[^\s${}]*(\$\{(?:oc\.)?[A-Za-z_][\w.]*(?:[:,][^{}\s]*)?\})(?!\S*\$)[^\s$]*(?!\S)")
"""`${NAME}`, as shells, OmegaConf and Hydra write it, in a word without other dollar signs, as formulas have."""


class _StopReadingError(Exception):
    """Reading cannot go on; the reason is among the faults."""


class TreeBuilder:
    """Builds the tree of one document, and collects faults while it can go on."""

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
            # An empty value's own mark is wherever the next token stands.
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
        """What keeps `name` from being the next key of `members`."""
        if not isinstance(name.value, str):
            text = event.value if isinstance(event, ScalarEvent) else ""
            hint = f"in quotes it is one: '{text}'" if text else None
            if isinstance(name.value, dict) and self.source.text.startswith("{{", event.start_mark.index - 1):
                hint = "a recipe is no template: write the value in place of {{ }}, or give it on the command line"
            return Fault(f"a key must be a text, not {describe(name)}", name.place, hint)
        start = event.start_mark.index
        if self.source.text[start - 1 : start] == "?":
            # YAML 1.2 reads {?a: 1} as the key "?a" and ruamel as "a"; we take it for neither.
            return Fault("a key cannot start with '?'", name.place, "put it in quotes")
        if name.value == "<<" and isinstance(event, ScalarEvent) and event.style is None:
            return Fault("merge keys (<<) have no meaning in a recipe", name.place, "use extends: other.yaml")
        if name.value in members and (first := members[name.value].key) is not None:
            where = f"line {first.line}, column {first.column}"
            return Fault(f"duplicate key {quoted(name.value)}; the first stands at {where}", name.place)
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
        # A block's end says nothing to the eye; its first character does.
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
