"""Resolve the name of a part by the recipe's file that has it.

Several packages may define a bare name. In a recipe of a package, it is a part of this package, or else one of upge. In
a run folder it is the part that the run had. So installing a package changes no shipped recipe and no finished run. Any
other recipe must name the package. A class in a file, `file.py:Class`, is beside the recipe that names it, whichever
recipe extends that one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from upge import registry
from upge.files import parse_json
from upge.recipe.yaml import Node
from upge.registry import Entry

UPGE = "upge"
BLOCKS = ("estimator", "fields", "data", "reward", "rollout", "eval")
"""The blocks of a recipe that hold parts."""
Place = tuple[str, ...]
"""A path in a recipe."""


def at_home(layer: Node, file: Path, shipped: Path | None) -> Node:
    """The layer with `package/name` for each such name. Shorthands are expanded in it before."""
    home = _Home(file, shipped)

    def settled(use: str, path: Place) -> str:
        entries = _offers(use, path)
        if "/" in use or len({offer.package for offer in entries}) < 2:
            return use
        meant = home.choice(entries, path)
        return use if meant is None else f"{meant.package}/{use}"

    return _renamed(layer, (), settled)


def names_file(use: str) -> bool:
    """Whether `use` names a class, or a part's parameter a function, in a Python file."""
    return re.fullmatch(r".+\.py:\w+", use) is not None


def with_whole_paths(layer: Node, folder: Path) -> Node:
    """The layer with the whole path of each Python file that its parts name relative to `folder`."""

    def whole(node: Node, *, is_part: bool) -> Node:
        if isinstance(node.value, tuple):
            return replace(node, value=tuple(whole(item, is_part=is_part) for item in node.value))
        if isinstance(node.value, dict):
            return replace(node, value={key: whole(x, is_part=key == "use") for key, x in node.value.items()})
        if not isinstance(node.value, str) or not names_file(node.value):
            return node
        file, _, name = node.value.rpartition(":")
        # A parameter's text may look like code and be none.
        found = is_part or os.path.isfile(folder / file)  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        return replace(node, value=f"{os.path.abspath(folder / file)}:{name}") if found else node  # noqa: PTH100

    members = layer.value if isinstance(layer.value, dict) else {}
    blocks = {key: whole(block, is_part=False) for key, block in members.items() if key in BLOCKS}
    return replace(layer, value={**members, **blocks})


def comparable(tree: Node, file: Path) -> Node:
    """The recipe in a run's folder, or one to be compared with it, with one name for each part, however it was written:
    the bare name for upge's, `package/name` for others'."""
    return _renamed(at_home(tree, file, None), (), _canonical)


def same(one: str, other: str) -> bool:
    """Whether two names, one of them perhaps without its package, mean one part."""
    return _canonical(one) == _canonical(other)


def _canonical(use: str, path: Place = ()) -> str:
    if "/" in use:
        return use.removeprefix(f"{UPGE}/")
    packages = {offer.package for offer in _offers(use, path)}
    return f"{packages.pop()}/{use}" if len(packages) == 1 and UPGE not in packages else use


class _Home:
    """The packages of a file's parts, looked up when they are needed."""

    def __init__(self, file: Path, shipped: Path | None) -> None:
        self._file, self._shipped = file, shipped

    def choice(self, entries: Sequence[Entry], path: Place) -> Entry | None:
        """The registered part that a name at a place refers to; None if it is ambiguous."""
        had = self._had().get(".".join(path))
        if had is not None:
            return next((offer for offer in entries if had == f"{offer.module}:{offer.attribute}"), None)
        package = self._package()
        preferred = () if package is None else (package, UPGE)
        return next((offer for name in preferred for offer in entries if offer.package == name), None)

    def _had(self) -> dict[str, str]:
        """The classes of a run by place, from its manifest."""
        try:
            parts = parse_json((self._file.parent / "manifest.json").read_text(encoding="utf-8"))["parts"]
            return {place: named.partition(" ")[0] for place, named in parts.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _package(self) -> str | None:
        """The package that brings the file."""
        folders = [*registry.recipe_folders(), *([] if self._shipped is None else [(UPGE, self._shipped)])]
        real = Path(os.path.realpath(self._file))
        return next((name for name, folder in folders if real.is_relative_to(os.path.realpath(folder))), None)


def _offers(use: str, path: Place) -> list[Entry]:
    """The offers of a bare name: in the slot at this place, or in any, for a part that is within another."""
    return [entry for entry in registry.entries(_slot(path)) if entry.name == use]


def _slot(path: Place) -> str | None:
    """The slot at a place; None within another part, where the parameter's name says nothing of it."""
    keys = [key for key in path if not key.isdigit()]
    if keys[:1] == ["fields"] and len(keys) == 2:
        return "field"
    slot = {"select": "selection"}.get(keys[-1], keys[-1]) if keys else None
    return slot if slot in registry.slots() else None


def _renamed(node: Node, path: Place, name: Callable[[str, Place], str]) -> Node:
    """The tree with another name for every part, by its name and its place."""
    if isinstance(node.value, tuple):
        items = (_renamed(item, (*path, str(index)), name) for index, item in enumerate(node.value))
        return replace(node, value=tuple(items))
    if not isinstance(node.value, dict):
        return node
    inside = {key: inner for key, inner in node.value.items() if path or key in BLOCKS}
    members = node.value | {key: _renamed(inner, (*path, key), name) for key, inner in inside.items()}
    use = members.get("use")
    if path and use is not None and isinstance(use.value, str):
        members["use"] = replace(use, value=name(use.value, path))
    return replace(node, value=members)
