"""From a YAML file to a `Recipe`: compose, build, check; every fault at once, each with its place."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from upge.recipe.catalog import find_recipe, shipped_recipes
from upge.recipe.compose import Composed, compose, locate, path_in_tree
from upge.recipe.error_messages import Wording
from upge.recipe.faults import COMMAND_LINE, Fault, RecipeError
from upge.recipe.keys import keys_at, means_null
from upge.recipe.keys import shorthand as shorthand
from upge.recipe.rules import broken_rules
from upge.recipe.schema import Recipe, RecipeContext
from upge.recipe.yaml import Node, plain


def load(path: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Recipe:
    """The recipe in a YAML file, with `dotted.path=value` overrides; no model is loaded.

    Raises RecipeError, which holds every fault with its file, line and column.
    """
    return load_composed(path, overrides, allow_code=allow_code)[0]


def load_composed(
    path: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False
) -> tuple[Recipe, Composed]:
    """The recipe, as `load`, and the merged tree with all places."""
    checked = check(path, overrides, allow_code=allow_code)
    if checked.recipe is None:
        place = locate(checked.composed.root, ("abstract",), prefer="value")
        raise RecipeError([Fault("this recipe is abstract: another recipe must extend it", place)])
    return checked.recipe, checked.composed


@dataclass(frozen=True)
class Checked:
    """A file without faults: its `recipe`, or None if it is abstract and has no faults so far."""

    recipe: Recipe | None
    composed: Composed


def check(path: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Checked:
    """As `load`, but an abstract recipe is no fault."""
    file = find_recipe(path)
    composed = compose(file, overrides, shipped=shipped_recipes(), shorthand=shorthand)
    workshop = RecipeContext(file.parent, allow_code=allow_code)
    composed = composed.keeping(lambda path, root: means_null(path, root, workshop))
    composed = replace(composed, root=_without_parents_line(composed.root, file))
    values = plain(composed.root) | _own_name(composed.root, file)
    abstract = _says_abstract(composed.root, file)
    if values.get("abstract") is True:  # its own, or that of an abstract recipe which it extends
        values = values | {"abstract": False} | ({"name": values.get("name", "fragment")} if abstract else {})
    wording = Wording(composed, workshop)
    faults = list(_removed_unknown(wording))
    recipe = None
    try:
        recipe = Recipe.model_validate(values, context=workshop)
    except ValidationError as error:
        details = [detail for detail in error.errors(include_url=False) if detail["type"] != "unsettled"]
        faults += wording.faults(details, abstract=abstract)
    if faults:
        raise RecipeError(faults)
    if recipe is None:
        return Checked(None, composed)
    root = composed.root
    faults = [
        *_leads_out(recipe, root, file),
        *_broken(recipe, root),
    ]
    if faults:
        raise RecipeError(faults)
    return Checked(None if abstract else recipe, composed)


def _broken(recipe: Recipe, root: Node) -> Iterator[Fault]:
    for at, message, hint in broken_rules(recipe):
        yield Fault(message, locate(root, path_in_tree(at, root), prefer="value"), hint)


def _leads_out(recipe: Recipe, root: Node, file: Path) -> Iterator[Fault]:
    """A recipe may write below the working folder or its own; anywhere else only the command line may send it."""
    place = locate(root, ("log", "folder"), prefer="value")
    folder = recipe.log.path(recipe.name)
    homes = [os.path.realpath(home) for home in (Path.cwd(), file.parent)]
    if place.file != COMMAND_LINE and not any(Path(os.path.realpath(folder)).is_relative_to(home) for home in homes):
        hint = f"give it on the command line, where it may lead anywhere: log.folder={folder}"
        yield Fault(f"the run folder '{folder}' leads out of the working folder and the recipe's", place, hint)


def _own_name(root: Node, file: Path) -> dict[str, str]:
    """The name from the file, if the recipe's name is its parent's, which isn't inherited; else {}."""
    name = root.value.get("name") if isinstance(root.value, dict) else None
    if name is None or name.place.file in (str(file), COMMAND_LINE):
        return {}
    return {"name": re.sub(r"[^\w.+-]+", "-", file.stem).strip("-.+") or "recipe"}


def _without_parents_line(root: Node, file: Path) -> Node:
    """The tree without an `about` of a parent."""
    assert isinstance(root.value, dict)
    about = root.value.get("about")
    if about is None or about.place.file in (str(file), COMMAND_LINE):
        return root
    return replace(root, value={key: node for key, node in root.value.items() if key != "about"})


def _says_abstract(root: Node, file: Path) -> bool:
    """Whether the file itself has `abstract: true`; a parent's isn't inherited."""
    abstract = root.value.get("abstract") if isinstance(root.value, dict) else None
    return abstract is not None and abstract.value is True and abstract.place.file == str(file)


def _removed_unknown(wording: Wording) -> Iterator[Fault]:
    """Faults for keys that a null removes and that don't exist: they are misspelt."""
    for path, place in wording.composed.removed:
        options = keys_at(path[:-1], wording.composed, wording.workshop)
        if options and path[-1] not in options:
            yield wording.unknown_key(path, place)
