"""The rule by which one layer of a recipe is merged over another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from upge.recipe.homes import same
from upge.recipe.nodes import Node, plain

Shorthand = Callable[[tuple[str, ...]], str | None]
"""For a path, the key that a bare string there stands for; None where a string is just a string."""


def merge(parent: Node, child: Node) -> Node:
    """`child` over `parent`: maps merge key by key, and anything else is replaced, lists too.

    A map that says another `use` than its parent is another part, to which the parent's parameters mean nothing, so it
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
    """The tree with each bare string that is a shorthand made the map it stands for, at the string's own place."""
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
