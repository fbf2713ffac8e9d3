"""Which of the recipes that ship use a part, and with which parameters."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from upge.describe.table import brief
from upge.part import Part
from upge.recipe import Recipe, check

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
REPEATING = ("bench/", "comparison/")
"""Folders of recipes that are others once more: they are named where a part is in none of those."""


def uses(kind: type[Part]) -> str:
    """The recipes that use a part, as links, after the part with the parameters that they give it."""
    recipes = shipped_recipes()
    found: dict[str, list[str]] = defaultdict(list)
    for name, recipe in recipes.items():
        for said in dict.fromkeys(brief(part) for part in recipe.parts().values() if type(part) is kind):
            found[said].append(name)
    own = {said: [name for name in names if not name.startswith(REPEATING)] or names for said, names in found.items()}
    listed = (f"`{said}` in {_listed(names, recipes)}" for said, names in own.items())
    return "; ".join(listed) or "none of those that ship"


@functools.cache
def shipped_recipes() -> Mapping[str, Recipe]:
    """The recipes in `recipes/` by their path there, without fragments that only others extend."""
    # Some recipes name a folder below runs/, which is looked for only where such a folder is: not in an empty one.
    with TemporaryDirectory() as empty, contextlib.chdir(empty):
        checked = {
            path.relative_to(RECIPES).with_suffix("").as_posix(): check(path, allow_code=True)
            for path in sorted(RECIPES.rglob("*.yaml"))
        }
    return {name: each.recipe for name, each in checked.items() if each.recipe is not None}


def _listed(names: list[str], recipes: Mapping[str, Recipe]) -> str:
    """The names, or those that are missing where these are far fewer."""
    missing = [name for name in recipes if name not in names and not name.startswith(REPEATING)]
    if len(missing) > len(recipes) // 5:
        return _links(names)
    return "all that ship" + (f" but {_links(missing)}" if missing else "")


def _links(names: list[str]) -> str:
    return ", ".join(f"[{name}](../../recipes/{name}.yaml)" for name in names)
