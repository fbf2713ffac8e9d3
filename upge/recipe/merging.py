"""One recipe from many layers: the files it extends, the file itself, and what the command line says.

Every layer is merged over the layers before it by one rule (`merge`), the command line's like the files'. A null stays
in the tree as a mark until the last layer is merged, so that it removes what any earlier layer says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from upge.recipe.extending import Extender
from upge.recipe.faults import Fault, Place, RecipeError
from upge.recipe.layers import Shorthand, merge
from upge.recipe.nodes import Node
from upge.recipe.overriding import Override, apply, parse_override

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
            layer that said it last.
        files: every file read, the recipe itself first, each once.
        removed: the dotted paths, with their places, at which a null stood last. A null also "removes" what no layer
            ever said, so whoever knows the right names can still tell a misspelt one.
    """

    root: Node
    files: tuple[Path, ...]
    removed: tuple[tuple[tuple[str, ...], Place], ...] = ()

    def keeping(self, means_null: Callable[[PathInRecipe, Node], bool]) -> Composed:
        """The same, with those nulls back in the tree that are values where they stand (see `keys.means_null`)."""
        root = self.root
        kept = [(path, place) for path, place in self.removed if means_null(path, self.root)]
        for path, place in kept:
            root = _with_null(root, path, place)
        return replace(self, root=root, removed=tuple(each for each in self.removed if each not in kept))


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
        overrides: "dotted.path=YAML value", merged in this order, each as if it were a file that says just this.
        shipped: the folder of the recipes that ship; an `extends` not found beside the file is looked up there.
        shorthand: tells for a path (an index in a list as its decimal string) which key a bare string there stands
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

    An item of a list has no key, so its own place stands in; the root's place is its file's first character.
    """
    node = root
    for step in path:
        inner = member(node, step)
        if inner is None:
            return node.key or node.place
        node = inner
    return (node.key or node.place) if prefer == "key" else node.place


def node_at(root: Node, path: PathInRecipe) -> Node | None:
    """What stands at `path`; None where nothing does."""
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
    """What a map holds under this key, or a list at this index; None without it."""
    if isinstance(node.value, dict):
        return node.value.get(str(step))
    if isinstance(node.value, tuple) and str(step).isdecimal() and int(step) < len(node.value):
        return node.value[int(step)]
    return None
