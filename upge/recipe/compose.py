"""One recipe from many layers: the files it extends, the file itself, and the command line's overrides.

Every layer is merged over the layers before it by one rule (`merge`), the command line's like the files'. A null stays
in the tree as a mark until the last layer is merged, so that it removes the key of any earlier layer.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from upge.recipe.faults import COMMAND_LINE, Fault, Place, RecipeError, Source, quoted
from upge.recipe.qualified_names import at_home, same, with_whole_paths
from upge.recipe.yaml import MAX_DEPTH, Node, describe, parse_value, plain, read
from upge.suggestions import nearest

Shorthand = Callable[[tuple[str, ...]], str | None]
"""For a path, the key that a bare string there abbreviates; None if a string is a plain value."""


def merge(parent: Node, child: Node) -> Node:
    """`child` over `parent`: maps merge key by key, and anything else is replaced, lists too.

    A map with another `use` than its parent is another part, which has other parameters, so it
    is replaced whole. The result has the child's places; keys that only the parent has keep theirs, and come first.
    """
    if not isinstance(parent.value, dict) or not isinstance(child.value, dict):
        return child
    if _is_another_part(parent.value, child.value):
        return child
    merged = dict(parent.value)
    for key, node in child.value.items():
        merged[key] = merge(merged[key], node) if key in merged else node
    return replace(child, value=merged)


def expand(node: Node, path: tuple[str, ...], shorthand: Shorthand) -> Node:
    """The tree with each shorthand string replaced by its map, at the place of the string."""
    if isinstance(node.value, dict):
        members = {key: expand(inner, (*path, key), shorthand) for key, inner in node.value.items()}
        return replace(node, value=members)
    if isinstance(node.value, tuple):
        items = (expand(item, (*path, str(index)), shorthand) for index, item in enumerate(node.value))
        return replace(node, value=tuple(items))
    if isinstance(node.value, str) and (key := shorthand(path)) is not None:
        return replace(node, value={key: Node(node.value, node.place, node.place)})
    return node


def _is_another_part(parent: dict[str, Node], child: dict[str, Node]) -> bool:
    before, after = parent.get("use"), child.get("use")
    if before is None or before.value is None or after is None or after.value is None:
        return False
    if isinstance(before.value, str) and isinstance(after.value, str):
        return not same(before.value, after.value)
    return bool(plain(before) != plain(after))


_INDEX = re.compile("0|[1-9][0-9]{0,8}")


@dataclass(frozen=True)
class Step:
    """One name of a dotted path, and its position in the override."""

    name: str
    place: Place


@dataclass(frozen=True)
class Override:
    """`a.b=value`, read: the steps to where it belongs, and the value's tree (null to remove what is there)."""

    steps: tuple[Step, ...]
    value: Node

    @property
    def path(self) -> tuple[str, ...]:
        """The steps' names."""
        return tuple(step.name for step in self.steps)


def parse_override(text: str, index: int) -> Override:
    """The override `text`, the `index`-th (from 1) on the command line.

    Raises:
        RecipeError: no "=", an empty name in the path or an empty value, a path to `extends`, a value that is no YAML.
    """
    dotted, equals, value = text.partition("=")
    whole = Source(COMMAND_LINE, text, override=index)
    if not equals:
        raise _error("an override needs a '='", whole.place(0, len(text)), f"write {dotted.strip() or 'a.b'}=value")
    steps = tuple(_steps(dotted, whole))
    _check(steps, whole.place(0, len(dotted)))
    node = parse_value(Source(COMMAND_LINE, value, override=index, before=dotted + equals))
    if node is None:
        hint = "null removes the key; '' is the empty text"
        raise _error("an override needs a value after the '='", whole.place(len(dotted)), hint)
    return Override(steps, replace(node, key=steps[-1].place))


def apply(root: Node, override: Override, shorthand: Shorthand) -> Node:
    """The tree with the override's value merged in at its path; maps that are missing on the way are made.

    Raises:
        RecipeError: the path leads into a scalar, or into a list by anything but the index of one of its items.
    """
    return _put(root, override.steps, expand(override.value, override.path, shorthand), ())


def _steps(dotted: str, whole: Source) -> Iterator[Step]:
    start = 0
    for part in dotted.split("."):
        name = part.strip()
        first = start + len(part) - len(part.lstrip())
        yield Step(name, whole.place(first, first + max(1, len(name))))
        start += len(part) + 1


def _check(steps: tuple[Step, ...], place: Place) -> None:
    for step in steps:
        if not step.name:
            raise _error("a name is missing in this path", step.place, "write names with one '.' between them")
    if steps[0].name == "extends":
        raise _error(
            "an override cannot change what a recipe extends", steps[0].place, "write a recipe that extends it"
        )
    if len(steps) > MAX_DEPTH:
        raise _error(f"a path of more than {MAX_DEPTH} names", place)


def _put(node: Node, steps: tuple[Step, ...], value: Node, done: tuple[str, ...]) -> Node:
    """`node`, at the path `done`, with `value` merged in where `steps` lead."""
    if not steps:
        return merge(node, value)
    step, rest = steps[0], steps[1:]
    if isinstance(node.value, tuple):
        index = _index(node.value, step, done)
        if not rest and value.value is None:
            raise _error(
                "an item of a list cannot be removed", step.place, f"write the whole list: {'.'.join(done)}=[...]"
            )
        item = _put(node.value[index], rest, value, (*done, step.name))
        return replace(node, value=(*node.value[:index], item, *node.value[index + 1 :]))
    if node.value is None:
        # Removed by an earlier layer, or left empty: the override starts it anew.
        node = Node({}, step.place, node.key)
    if not isinstance(node.value, dict):
        message = f"{'.'.join(done)} is {describe(node)}, which has nothing named {quoted(step.name)}"
        raise _error(message, step.place)
    inner = node.value.get(step.name, Node(None, step.place, step.place))
    return replace(node, value={**node.value, step.name: _put(inner, rest, value, (*done, step.name))})


def _index(items: tuple[Node, ...], step: Step, done: tuple[str, ...]) -> int:
    path = ".".join(done)
    if not _INDEX.fullmatch(step.name):
        hint = f"write {path}.0 for its first item" if items else f"write {path}=[...]"
        raise _error(f"{path} is a list, which {quoted(step.name)} cannot index", step.place, hint)
    if int(step.name) >= len(items):
        hint = f"its items are 0 to {len(items) - 1}" if items else f"write {path}=[...]"
        raise _error(f"{path} has no item {step.name}, being a list of {len(items)}", step.place, hint)
    return int(step.name)


def _error(message: str, place: Place, hint: str | None = None) -> RecipeError:
    return RecipeError([Fault(message, place, hint)])


_LONGEST_CHAIN = 32
"""Files that may extend one another in a row."""

_MOST_PARENTS = 32
"""Files that one may extend side by side."""


class Extender:
    """Reads a recipe's file and all that it extends; collects the faults of all of them.

    Attributes:
        files: the files read, the recipe first, each once.
        faults: what is wrong with them.
    """

    def __init__(self, path: Path, shipped: Path | None, shorthand: Shorthand) -> None:
        self.files: list[Path] = []
        self.faults: list[Fault] = []
        self._path = path
        self._shipped = shipped
        self._shorthand = shorthand
        self._roots = [_real(folder) for folder in (path.parent, shipped) if folder is not None]
        # A file that several others extend is merged once, or a ladder of such files would take forever.
        self._composed: dict[Path, Node] = {}
        self._bytes = 0

    def compose(self) -> Node:
        """The recipe over all that it extends, shorthands expanded, nulls kept; of use only if there are no faults."""
        return self._layer(self._path, ())

    def _layer(self, path: Path, chain: tuple[Path, ...]) -> Node:
        """The file at `path` over what it extends; `chain` is the files that led here."""
        real = _real(path)
        if real not in self._composed:
            self._composed[real] = self._merged(path, chain)
        return self._composed[real]

    def _merged(self, path: Path, chain: tuple[Path, ...]) -> Node:
        self.files.append(path)
        try:
            root = read(path, before=self._bytes)
            self._bytes += path.stat().st_size
        except RecipeError as error:
            self.faults.extend(error.faults)
            return Node({}, Place(str(path), 1, 1, ""))
        assert isinstance(root.value, dict)
        members = dict(root.value)
        extends = members.pop("extends", None)
        layer = at_home(expand(replace(root, value=members), (), self._shorthand), path, self._shipped)
        if _real(path.parent) != _real(self._path.parent):
            layer = with_whole_paths(layer, path.parent)
        base: Node | None = None
        for name in self._names(extends):
            parent = self._parent(name, path, (*chain, path))
            base = parent if base is None or parent is None else merge(base, parent)
        return layer if base is None else merge(base, layer)

    def _names(self, extends: Node | None) -> Iterator[Node]:
        """The names that an `extends` holds: one string or a list of them."""
        if extends is None or extends.value is None:
            return
        nodes = extends.value if isinstance(extends.value, tuple) else (extends,)
        if len(nodes) > _MOST_PARENTS:
            self._fault(f"more than {_MOST_PARENTS} files to extend", nodes[_MOST_PARENTS])
        for node in nodes[:_MOST_PARENTS]:
            if isinstance(node.value, str) and node.value.strip() and "\0" not in node.value:
                yield node
            else:
                self._fault(f"extends names a file, and not {describe(node)}", node, "write extends: base.yaml")

    def _parent(self, name: Node, child: Path, chain: tuple[Path, ...]) -> Node | None:
        """The layer that the file `child` extends by `name`; None if it can't be read."""
        path = self._find(name, child)
        if path is None:
            return None
        seen = [_real(file) for file in chain]
        if _real(path) in seen:
            circle = [*chain[seen.index(_real(path)) :], path]
            self._fault(f"a circle: {' extends '.join(map(str, circle))}", name)
            return None
        if len(chain) >= _LONGEST_CHAIN:
            self._fault(f"more than {_LONGEST_CHAIN} files extend one another", name)
            return None
        return self._layer(path, chain)

    def _find(self, name: Node, child: Path) -> Path | None:
        """The file that `name` means, beside `child` or else among the recipes that ship."""
        text = str(name.value)
        folders = [child.parent] if self._shipped is None else [child.parent, self._shipped]
        for folder in folders:
            path = _tidy(folder / text)
            if not any(_real(path).is_relative_to(root) for root in self._roots):
                hint = f"extend files in or below {' or '.join(map(str, self._roots))}"
                self._fault(f"{quoted(text)} leads out of the recipe's folder", name, hint)
                return None
            if os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises for a name that is too long)
                return path
        names = _names_below(*folders)
        meant = nearest(text, names) or nearest(f"{text}.yaml", names)
        self._fault(f"there is no file {quoted(text)} to extend", name, meant and f"did you mean {quoted(meant)}?")
        return None

    def _fault(self, message: str, node: Node, hint: str | None = None) -> None:
        self.faults.append(Fault(message, node.place, hint))


def _real(path: Path) -> Path:
    """The target of `path`, with links resolved; unlike `Path.resolve` it accepts a cycle of links."""
    return Path(os.path.realpath(path))


def _tidy(path: Path) -> Path:
    """`path` without `..`, if it then leads to the same place (behind a link to a folder it need not)."""
    tidy = Path(os.path.normpath(path))
    return tidy if _real(tidy) == _real(path) else path


@functools.lru_cache(maxsize=4)
def _names_below(*folders: Path) -> list[str]:
    """The recipes in `folders` and one level below, as an `extends` would name them."""
    return [
        file.relative_to(folder).as_posix()
        for folder in folders
        for pattern in ("*.yaml", "*/*.yaml")
        for file in sorted(folder.glob(pattern))
    ]


__all__ = [
    "Composed",
    "PathInRecipe",
    "Shorthand",
    "compose",
    "locate",
    "member",
    "merge",
    "node_at",
    "path_in_tree",
    "place_of",
]

PathInRecipe = tuple[str | int, ...]


@dataclass(frozen=True)
class Composed:
    """A recipe whose layers are merged.

    Attributes:
        root: the merged tree, without `extends` and without nulls in its maps; each key and value has the place of the
            last layer that has it.
        files: every file read, the recipe itself first, each once.
        removed: the dotted paths, with their places, at which the last value was null. A null also "removes" what no
            layer has, so that a later check can report misspelt names.
    """

    root: Node
    files: tuple[Path, ...]
    removed: tuple[tuple[tuple[str, ...], Place], ...] = ()

    def keeping(self, means_null: Callable[[PathInRecipe, Node], bool]) -> Composed:
        """The same with those nulls restored that are values (see `keys.means_null`)."""
        root = self.root
        kept = [(path, place) for path, place in self.removed if means_null(path, self.root)]
        for path, place in kept:
            root = _with_null(root, path, place)
        return replace(
            self, root=root, removed=tuple(removed_path for removed_path in self.removed if removed_path not in kept)
        )


def compose(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    shipped: Path | None,
    shorthand: Callable[[tuple[str, ...]], str | None],
) -> Composed:
    """The recipe at `path`, merged over what it extends and under the overrides.

    Args:
        path: the recipe's file; what it extends must lie in its folder or below, or within `shipped`.
        overrides: "dotted.path=YAML value", merged in this order, each like a file with this one key.
        shipped: the folder of the recipes that ship; an `extends` not found beside the file is looked up there.
        shorthand: for a path (an index in a list as its decimal string) the key that a bare string there stands
            for, or None: with `("reward",) -> "use"`, `reward: exact` means `reward: {use: exact}`.

    Raises:
        RecipeError: every problem of the files and of the overrides' texts; if there are none, every override that
            fits nowhere.
    """
    extender = Extender(path, shipped, shorthand)
    root = extender.compose()
    faults = list(extender.faults)
    parsed = _parse(overrides, faults)
    if faults:
        raise RecipeError(faults)
    for override in parsed:
        try:
            root = apply(root, override, shorthand)
        except RecipeError as error:
            faults.extend(error.faults)
    if faults:
        raise RecipeError(faults)
    removed: list[tuple[tuple[str, ...], Place]] = []
    return Composed(_without_nulls(root, (), removed), tuple(extender.files), tuple(removed))


def locate(root: Node, path: tuple[str | int, ...], *, prefer: Literal["key", "value"]) -> Place:
    """The place of the key or the value at `path`; where the path ends early, of the deepest enclosing block's key.

    An item of a list has no key, so its own place is used; the root's place is its file's first character.
    """
    node = root
    for step in path:
        inner = member(node, step)
        if inner is None:
            return node.key or node.place
        node = inner
    return (node.key or node.place) if prefer == "key" else node.place


def node_at(root: Node, path: PathInRecipe) -> Node | None:
    """The node at `path`; None if there is none."""
    node: Node | None = root
    for step in path:
        node = None if node is None else member(node, step)
    return node


def place_of(root: Node, dotted: str) -> Place:
    """The place of the value at a dotted path, as parts are named by: `estimator.terms.rl.mask.0`."""
    keys = tuple(int(key) if key.isdigit() else key for key in dotted.split("."))
    return locate(root, path_in_tree(keys, root), prefer="value")


def path_in_tree(keys: Sequence[str | int], node: Node | None) -> PathInRecipe:
    """A path in the schema as a path in the YAML: without union tags, and without the index of a list of one."""
    path: list[str | int] = []
    for key in keys:
        value = node.value if node is not None else None
        if str(key).startswith("[") or (isinstance(key, int) and not isinstance(value, tuple)):
            continue
        path.append(key)
        if isinstance(value, dict):
            node = value.get(str(key))
        else:
            node = value[key] if isinstance(value, tuple) and isinstance(key, int) and key < len(value) else None
    return tuple(path)


def _parse(overrides: Sequence[str], faults: list[Fault]) -> list[Override]:
    parsed = []
    for index, text in enumerate(overrides, start=1):
        try:
            parsed.append(parse_override(text, index))
        except RecipeError as error:
            faults.extend(error.faults)
    return parsed


def _without_nulls(node: Node, path: tuple[str, ...], removed: list[tuple[tuple[str, ...], Place]]) -> Node:
    """The tree without the keys that hold null; a list keeps its nulls, since its items have no names to remove."""
    if isinstance(node.value, tuple):
        items = (_without_nulls(item, (*path, str(index)), removed) for index, item in enumerate(node.value))
        return replace(node, value=tuple(items))
    if not isinstance(node.value, dict):
        return node
    kept = {}
    for key, inner in node.value.items():
        if inner.value is None:
            removed.append(((*path, key), inner.key or inner.place))
        else:
            kept[key] = _without_nulls(inner, (*path, key), removed)
    return replace(node, value=kept)


def _with_null(node: Node, path: tuple[str, ...], place: Place) -> Node:
    """The tree with a null at this path, whose parents are there."""
    if not path:
        return Node(None, place, place)
    step, rest = path[0], path[1:]
    if isinstance(node.value, tuple):
        items = [_with_null(it, rest, place) if str(i) == step else it for i, it in enumerate(node.value)]
        return replace(node, value=tuple(items))
    assert isinstance(node.value, dict)
    inner = node.value.get(step, Node(None, place, place))
    return replace(node, value={**node.value, step: _with_null(inner, rest, place)})


def member(node: Node, step: str | int) -> Node | None:
    """The member of a map with this key, or of a list at this index; None if there is none."""
    if isinstance(node.value, dict):
        return node.value.get(str(step))
    if isinstance(node.value, tuple) and str(step).isdecimal() and int(step) < len(node.value):
        return node.value[int(step)]
    return None
