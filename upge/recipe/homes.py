"""Whose part a bare name means where several packages offer it, in the files of which that can be told.

In a recipe that a package brings a name is the package's own part; in the folder of a run it is the part that the run
had. Installing a package thus changes no shipped recipe and no finished run. Anybody else has to say whose is meant.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from upge import discovery
from upge.discovery import Offer
from upge.files import parse_json
from upge.recipe.nodes import Node


def at_home(layer: Node, file: Path, shipped: Path | None) -> Node:
    """The layer with `package/name` for each such name. Shorthands are expanded in it before."""
    several = _several()
    return _settled(layer, (), _Home(file, shipped), several) if several else layer


class _Home:
    """What a file tells of its parts' packages, looked up when it is asked for."""

    def __init__(self, file: Path, shipped: Path | None) -> None:
        self._file, self._shipped = file, shipped

    def choice(self, offers: Sequence[Offer], path: tuple[str, ...]) -> Offer | None:
        """Which of the offers is meant at a place; None where it can't be told."""
        had = self._had().get(".".join(path))
        if had is not None:
            return next((offer for offer in offers if had == f"{offer.module}:{offer.attribute}"), None)
        package = self._package()
        return next((offer for offer in offers if offer.package == package), None)

    def _had(self) -> dict[str, str]:
        """The classes that a run had, by place, as its manifest says."""
        try:
            said = parse_json((self._file.parent / "manifest.json").read_text(encoding="utf-8"))["parts"]
            return {place: named.partition(" ")[0] for place, named in said.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return {}

    def _package(self) -> str | None:
        """The package that brings the file."""
        folders = [*discovery.recipe_folders(), *([] if self._shipped is None else [("upge", self._shipped)])]
        real = Path(os.path.realpath(self._file))
        return next((name for name, folder in folders if real.is_relative_to(os.path.realpath(folder))), None)


def _several() -> dict[tuple[str, str], list[Offer]]:
    """The offers of each slot and name that several packages have."""
    found: dict[tuple[str, str], list[Offer]] = {}
    for offer in discovery.offers():
        found.setdefault((offer.slot, offer.name), []).append(offer)
    return {key: offers for key, offers in found.items() if len(offers) > 1}


def _settled(node: Node, path: tuple[str, ...], home: _Home, several: dict[tuple[str, str], list[Offer]]) -> Node:
    if isinstance(node.value, tuple):
        items = (_settled(item, (*path, str(index)), home, several) for index, item in enumerate(node.value))
        return replace(node, value=tuple(items))
    if not isinstance(node.value, dict):
        return node
    members = {key: _settled(inner, (*path, key), home, several) for key, inner in node.value.items()}
    use = members.get("use")
    slot = next((key for key in reversed(path) if not key.isdigit()), "")
    if use is not None and (offers := several.get((slot, str(use.value)))):
        meant = home.choice(offers, path)
        members["use"] = use if meant is None else replace(use, value=f"{meant.package}/{meant.name}")
    return replace(node, value=members)
