"""The tree of a recipe: data in which every key and value knows its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from upge.recipe.faults import Place, quoted
from upge.recipe.scalars import Scalar


@dataclass(frozen=True)
class Node:
    """A value of a recipe with its places.

    Attributes:
        value: a map by key, a list as a tuple, or a scalar.
        place: of the value; the root's is the file's first character; a value left empty stands where its key does.
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
    """What kind of thing a node is, for messages: "a map", "the number 3"."""
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
