"""Writing files that are not there yet, and blocks of a recipe's tree as a person would have written them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from upge.errors import InputError
from upge.recipe.keys import shorthand
from upge.recipe.nodes import Node

_LONGEST = 110
"""Characters of a map that is written on one line."""


def write_new(path: Path, text: str) -> Path:
    """Write a file and the folders that it lies in; an existing one is never written over.

    Raises InputError where that can't be done.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise InputError(already(path) if path.exists() else f"{path}: can't be written: {error.strerror}") from None
    return path


def already(path: Path) -> str:
    """What is said of a file or folder that is there."""
    return f"there is a '{path}' already; nothing is written over"


def as_yaml(members: Mapping[str, Node | str]) -> str:
    """A recipe's keys and values as YAML: the shorthands for parts, short maps on one line, numbers as they stood."""
    return _dumped(CommentedMap({key: _styled(value, (key,)) for key, value in members.items()}))


def _styled(node: Node | str, path: tuple[str, ...]) -> Any:
    """The value at a path as ruamel writes it in this style."""
    if isinstance(node, str):
        return node
    if isinstance(node.value, dict):
        members = CommentedMap({key: _styled(inner, (*path, key)) for key, inner in node.value.items()})
        if list(members) == [shorthand(path)]:
            return next(iter(members.values()))
        if not any(isinstance(value, dict) for value in members.values()):
            _on_one_line(members)
        return members
    if isinstance(node.value, tuple):
        items = CommentedSeq([_styled(item, (*path, str(index))) for index, item in enumerate(node.value)])
        if not any(isinstance(item, dict) for item in items):
            items.fa.set_flow_style()
        return items
    return _as_written(node) if isinstance(node.value, float) else node.value


def _on_one_line(members: CommentedMap) -> None:
    """Write the map between braces, unless that is too long to read."""
    members.fa.set_flow_style()
    if len(_dumped(members)) > _LONGEST:
        members.fa.set_block_style()


def _as_written(number: Node) -> Any:
    """A number in the form that its author gave it: `3e-4` and not 0.0003."""
    place = number.place
    written = YAML().load(place.text[place.column - 1 : place.column - 1 + place.width])
    return written if written == number.value else number.value


def _dumped(value: CommentedMap) -> str:
    yaml = YAML()
    yaml.width = 1 << 16  # no folding
    yaml.indent(mapping=2, sequence=4, offset=2)
    text = io.StringIO()
    yaml.dump(value, text)
    return text.getvalue()
