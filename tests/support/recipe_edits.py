"""Random edits of good recipes; each knows where its fault has to be reported.

An edit is what happens to people: a line or key is dropped, a key misspelt, a value of another kind, a line moved, a
line twice, the file cut. The fault has to be reported where it is promised: an unknown key at the key, a bad value at
the value, something missing at the enclosing block's key, a duplicate at the second; after a deletion or a cut all the
enclosing blocks' keys count. Two things follow from what recipes mean: where a term's name is lost, what names it is
wrong; and of settings that only one rule ties together (`TIED`), either may be called wrong.

The outline of a text comes from ruamel's own nodes, and owes nothing to the reader that is tested.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

WHOLE = Path(__file__).parent / "whole.yaml"
"""A recipe with every block, in every style, that extends nothing."""

TIED = (
    {"eval.n", "eval.pass_at"},
    {"train.prompts", "train.minibatches"},
    {"rollout.max_tokens", "soft_limit", "limit"},
    {"critic", "advantage"},
    {"rollout.engine", "mask", "denominator"},
    {"rollout.refill", "estimator.switch"},
    {"model.path", "model.config", "model.tokenizer"},
)
"""Settings that one rule ties together; a last name alone stands for every path that ends so."""

FREE = (("estimator", "terms"), ("weights",), ("config",), ("evaluation",))
"""Blocks whose keys are anybody's choice."""

FOREIGN = ("colour", "learning_rate", "steps", "use", "lr", "kl_coefficient", "mask", "path", "name", "Beta")
VALUES = (
    *("text", "17", "-3", "0", "2.5", "1e300", "-1e300", "1e999", "123456789012345678901234567890", "true", "null"),
    *("[]", "[1, x]", "{}", "{a: 1}", "''", ".nan", ".inf"),
)


@dataclass(frozen=True)
class Entry:
    """A key with its value, or a list's item, as ranges of the text; the root has no key and no path.

    `parent` is the block that holds it, `flow` whether that is written in brackets.
    """

    path: tuple[str, ...]
    key: range
    value: range
    parent: Entry | None
    flow: bool
    kind: type

    @property
    def named(self) -> bool:
        return len(self.key) > 0

    @property
    def start(self) -> int:
        return self.key.start if self.named else self.value.start

    def is_taken(self, touched: range) -> bool:
        """Whether a change of this range takes the key, or all of the value."""
        key = self.named and self.key.start < touched.stop and touched.start < self.key.stop
        return key or (touched.start <= self.value.start and self.value.stop <= touched.stop)

    def ancestors(self) -> Iterator[Entry]:
        above = self.parent
        while above is not None:
            yield above
            above = above.parent

    def head(self) -> range:
        """Where this block is called faulty as a whole: its key, or where it starts; the root's first character."""
        if not self.path:
            return range(1)
        return self.key if self.named else range(self.value.start, self.value.start + 1)


@dataclass(frozen=True)
class Edit:
    """An edited text, and the ranges in which its fault may be reported.

    `sure`: the edit makes a fault for certain, so that no fault is a miss.
    """

    kind: str
    what: str
    text: str
    right: tuple[range, ...]
    sure: bool = False

    def is_right(self, line: int, column: int) -> bool:
        """Whether a fault's place, counted from 1, is where it has to be."""
        lines = self.text.split("\n")
        index = sum(len(before) + 1 for before in lines[: line - 1]) + column - 1
        return any(index in allowed for allowed in self.right)


class Outline:
    """A good recipe's text with all its entries, in reading order, the root first."""

    def __init__(self, text: str) -> None:
        self.text = text
        root = YAML(typ="safe", pure=True).compose(text)
        self.entries = list(self._entries(root, (), range(0), None, flow=False))
        self.keys = [entry for entry in self.entries if entry.named]

    def _entries(
        self, node: Any, path: tuple[str, ...], key: range, parent: Entry | None, flow: bool
    ) -> Iterator[Entry]:
        entry = Entry(path, key, self._range(node), parent, flow, type(node))
        yield entry
        inside = bool(getattr(node, "flow_style", False))
        if isinstance(node, MappingNode):
            for name, value in node.value:
                yield from self._entries(value, (*path, name.value), self._range(name), entry, flow=inside)
        elif isinstance(node, SequenceNode):
            for index, value in enumerate(node.value):
                yield from self._entries(value, (*path, str(index)), range(0), entry, flow=inside)

    def _range(self, node: Any) -> range:
        """A node's characters; a block ends where its last member does, and not where the next token starts."""
        if not isinstance(node, ScalarNode) and not node.flow_style and node.value:
            last = node.value[-1]
            return range(node.start_mark.index, self._range(last[1] if isinstance(last, tuple) else last).stop)
        text = self.text[node.start_mark.index : node.end_mark.index]
        return range(node.start_mark.index, node.start_mark.index + len(text.rstrip()))

    def line(self, index: int) -> range:
        """The line of a character, with its line break."""
        start = self.text.rfind("\n", 0, index) + 1
        end = self.text.find("\n", index)
        return range(start, len(self.text) if end < 0 else end + 1)

    def lines(self, entry: Entry) -> range | None:
        """The lines that an entry has for itself; None for one in brackets or behind a dash."""
        start, end = self.line(entry.key.start).start, self.line(max(entry.value.stop, entry.key.stop) - 1).stop
        alone = not entry.flow and not self.text[start : entry.key.start].strip()
        return range(start, end) if alone else None

    def following(self, touched: range) -> Iterator[range]:
        """Where else a fault may stand when this range is gone: what names a term that is, or is tied to what is."""
        gone = [entry for entry in self.entries if entry.path and entry.is_taken(touched)]
        terms = {entry.path[-1] for entry in gone if entry.path[:-1] == ("estimator", "terms")}
        groups = [group for group in TIED if any(_names(group, entry) for entry in gone)]
        for entry in self.entries:
            if entry.kind is ScalarNode and self.text[entry.value.start : entry.value.stop] in terms:
                yield entry.value
            if entry.named and entry.path[-1] in terms:
                yield entry.key
            if any(_names(group, block) for group in groups for block in (entry, *entry.ancestors())):
                yield range(entry.start, entry.value.stop)


def _names(group: set[str], entry: Entry) -> bool:
    return bool(entry.path) and (".".join(entry.path) in group or entry.path[-1] in group)


def change(
    outline: Outline,
    kind: str,
    what: str,
    old: range,
    new: str,
    *,
    right: tuple[range, ...] = (),
    inside: range | None = None,
    touched: range | None = None,
    sure: bool = False,
) -> Edit:
    """The text with `old` replaced by `new`.

    `right` are ranges of the old text, `inside` one of `new`, by default all of it; `touched` is what may be lost, by
    default `old`. A sure fault stands in `right` or `inside`, others also where they follow from what is touched.
    """
    text = outline.text[: old.start] + new + outline.text[old.stop :]
    shift = len(new) - len(old)
    within = range(len(new)) if inside is None else inside
    follows = () if sure else outline.following(old if touched is None else touched)

    def moved(index: int) -> int:
        if index <= old.start:
            return index
        return index + shift if index >= old.stop else min(index, old.start + len(new))

    spans = [range(moved(r.start), moved(r.stop)) for r in (*right, *follows)]
    return Edit(kind, what, text, (*spans, range(old.start + within.start, old.start + within.stop)), sure)


def drop(outline: Outline, chance: random.Random) -> Edit:
    """A key with its value is gone, or only its line."""
    entry = chance.choice(outline.keys)
    name = ".".join(entry.path)
    blocks = tuple(above.head() for above in entry.ancestors())
    if entry.flow:
        old = _with_comma(outline.text, range(entry.key.start, entry.value.stop))
        return change(outline, "drop", f"the entry {name}", old, "", right=blocks)
    lines, line = outline.lines(entry), outline.line(entry.key.start)
    old = line if lines is None or chance.random() < 0.3 else lines
    left = range(old.stop, max(old.stop, entry.value.stop + 1))
    what = f"the line of {name}" if old != lines else f"the lines of {name}"
    return change(outline, "drop", what, old, "", right=(*blocks, left))


def rename(outline: Outline, chance: random.Random) -> Edit:
    """A key has another name."""
    entry = chance.choice(outline.keys)
    word = entry.path[-1]
    foreign = chance.random() < 0.25
    new = chance.choice(FOREIGN) if foreign else misspelt(word, chance)
    siblings = {other.path[-1] for other in outline.keys if other.parent == entry.parent}
    if new in siblings or not new:
        return rename(outline, chance)
    free = any(entry.path[:-1][-len(block) :] == block for block in FREE)
    assert entry.parent is not None
    right = (entry.parent.head(), *((entry.value,) if foreign else ()))
    return change(
        outline,
        "rename",
        f"{'.'.join(entry.path)} to {new}",
        entry.key,
        new,
        right=() if not (foreign or free) else right,
        sure=not (foreign or free),
    )


def misspelt(word: str, chance: random.Random) -> str:
    """A letter dropped or doubled, or two swapped."""
    at = chance.randrange(len(word))
    ways: tuple[Callable[[], str], ...] = (
        lambda: word[:at] + word[at + 1 :],
        lambda: word[: at + 1] + word[at:],
        lambda: word[: at - 1] + word[at] + word[at - 1] + word[at + 1 :] if at else "",
    )
    new = chance.choice(ways)()
    return new if new != word else misspelt(word, chance)


def retype(outline: Outline, chance: random.Random) -> Edit:
    """A value of another kind."""
    entry = chance.choice([e for e in outline.entries if e.path])
    old = outline.text[entry.value.start : entry.value.stop]
    quoted = [f"'{old}'"] if re.fullmatch(r"[-+.0-9e]+", old) else []
    new = chance.choice([value for value in (*VALUES, *quoted * 4) if value != old])
    what = f"{'.'.join(entry.path)} to {new}"
    return change(outline, "retype", what, entry.value, new, right=_lacking(entry, new), sure=new == "1e999")


def _lacking(entry: Entry, value: str) -> tuple[range, ...]:
    """The heads of the blocks that lack something with this value: null removes, and an empty one has nothing in it."""
    assert entry.parent is not None
    if value == "null" or (value == "[]" and entry.path == ("extends",)):
        return (entry.key, entry.parent.head())
    return (entry.head(),) if value[0] == "{" else ()


def reindent(outline: Outline, chance: random.Random) -> Edit:
    """A line starts further left or right, or with a tab."""
    lines = list(re.finditer(r"^( *)(?=[^ #\n])", outline.text, re.MULTILINE))
    found = chance.choice(lines)
    depth = len(found[1])
    new = chance.choice(["\t", *(" " * (depth + by) for by in (-4, -3, -2, -1, 1, 2, 3, 4) if depth + by >= 0)])
    line = outline.line(found.start())
    below = outline.line(line.stop) if line.stop < len(outline.text) else line
    moved = [e for e in outline.entries if e.path and e.start in range(line.start, below.stop)]
    blocks = tuple(above.head() for entry in moved for above in entry.ancestors())
    what = f"line {outline.text.count(chr(10), 0, found.start()) + 1} by {len(new.expandtabs(8)) - depth}"
    old, touched = range(found.start(), found.end()), range(line.start, below.stop)
    return change(outline, "reindent", what, old, new, right=(line, below, *blocks), touched=touched)


def duplicate(outline: Outline, chance: random.Random) -> Edit:
    """A key stands twice in its block: the second right behind the first, or at the block's end."""
    entry = chance.choice(outline.keys)
    assert entry.parent is not None
    lines = outline.lines(entry)
    name = ".".join(entry.path)
    text = outline.text
    if lines is None:
        copy = text[entry.key.start : entry.value.stop]
        at = chance.choice([entry, _last(outline, entry.parent)]).value.stop if entry.flow else entry.value.stop
        before = ", " if entry.flow else "\n" + " " * (entry.key.start - outline.line(entry.key.start).start)
        new = before + copy
        inside = range(len(before), len(before) + len(entry.key))
    else:
        new = text[lines.start : lines.stop]
        new = new if new.endswith("\n") else f"\n{new}"
        last = outline.lines(_last(outline, entry.parent))
        at = chance.choice([lines, last or lines]).stop
        first = entry.key.start - lines.start
        inside = range(first, first + len(entry.key))
    return change(outline, "duplicate", name, range(at, at), new, inside=inside, sure=True)


def truncate(outline: Outline, chance: random.Random) -> Edit:
    """The file ends early."""
    at = chance.randrange(1, len(outline.text))
    kept = outline.text[:at]
    cut = [e for e in outline.entries if e.start < at <= e.value.stop + 1] if kept.strip() else []
    blocks = tuple(above.head() for entry in outline.entries if entry.value.stop >= at for above in (entry,))
    open_quote = tuple(range(e.value.start, e.value.start + 1) for e in cut if e.path)
    last = range(outline.line(max(0, len(kept.rstrip()) - 1)).start, at)
    what = f"at {kept.count(chr(10)) + 1}:{len(kept) - kept.rfind(chr(10))}"
    gone = range(at, len(outline.text))
    return change(outline, "truncate", what, gone, "", right=(*blocks, *open_quote, last), inside=range(1))


KINDS: dict[str, Callable[[Outline, random.Random], Edit]] = {
    each.__name__: each for each in (drop, rename, retype, reindent, duplicate, truncate)
}


def edits(texts: Mapping[str, str], count: int, seed: int) -> Iterator[tuple[str, Edit]]:
    """`count` edits of texts by their name, the kinds in turn, each with the name of its text."""
    chance = random.Random(seed)
    outlines = {name: Outline(text) for name, text in texts.items()}
    for _, kind in zip(range(count), itertools.cycle(KINDS.values()), strict=False):
        name = chance.choice(sorted(outlines))
        yield name, kind(outlines[name], chance)


def _last(outline: Outline, block: Entry) -> Entry:
    return [entry for entry in outline.keys if entry.parent == block][-1]


def _with_comma(text: str, old: range) -> range:
    """`old` and the comma that is too many without it."""
    behind = re.compile(r"\s*,\s*").match(text, old.stop)
    if behind:
        return range(old.start, behind.end())
    before = re.search(r",\s*$", text[: old.start])
    return range(before.start() if before else old.start, old.stop)
