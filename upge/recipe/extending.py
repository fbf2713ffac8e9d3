"""A recipe's file merged over the files it extends, which must stay within two folders."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from upge.recipe.faults import Fault, Place, RecipeError, nearest, quoted
from upge.recipe.homes import at_home
from upge.recipe.layers import Shorthand, expand, merge
from upge.recipe.nodes import Node, describe
from upge.recipe.reading import read

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
        """The layer that `name` in the file `child` stands for; None if it cannot be had."""
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
    """Where `path` leads, links followed; unlike `Path.resolve` it takes a circle of links as it stands."""
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
