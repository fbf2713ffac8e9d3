"""From a YAML file to a `Recipe`: compose, build, check; every fault at once, each with its place."""

from __future__ import annotations

import functools
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from upge.parts import SLOTS, Settings
from upge.recipe.faults import Fault, RecipeError, nearest
from upge.recipe.finding import find_recipe, shipped_recipes
from upge.recipe.merging import Composed, compose, locate
from upge.recipe.nodes import Node, plain
from upge.recipe.rules import broken_rules
from upge.recipe.schema import Recipe, RecipeWorkshop

PathInRecipe = tuple[str | int, ...]


def load(path: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Recipe:
    """The recipe in a YAML file, with `dotted.path=value` overrides; no model is loaded.

    Raises RecipeError, which holds every fault with its file, line and column.
    """
    return load_composed(path, overrides, allow_code=allow_code)[0]


def load_composed(
    path: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False
) -> tuple[Recipe, Composed]:
    """As `load`, with the merged tree that says where everything stands."""
    checked = check(path, overrides, allow_code=allow_code)
    if checked.recipe is None:
        place = locate(checked.composed.root, ("abstract",), prefer="value")
        raise RecipeError([Fault("this is a fragment to extend, not a recipe to load", place)])
    return checked.recipe, checked.composed


@dataclass(frozen=True)
class Checked:
    """A file without faults: its `recipe`, or None if it is an abstract fragment that is right as far as it goes."""

    recipe: Recipe | None
    composed: Composed


def check(path: str | Path, overrides: Sequence[str] = (), *, allow_code: bool = False) -> Checked:
    """As `load`, but an abstract fragment is no fault."""
    file = find_recipe(path)
    composed = compose(file, overrides, shipped=shipped_recipes(), shorthand=shorthand)
    values = plain(composed.root)
    abstract = _says_abstract(composed.root, file)
    workshop = RecipeWorkshop(file.parent, allow_code=allow_code)
    if values.get("abstract") is True:  # its own, or that of a fragment which it extends
        values = values | {"abstract": False} | ({"name": values.get("name", "fragment")} if abstract else {})
    faults = list(_removed_unknown(composed, workshop))
    recipe = None
    try:
        recipe = Recipe.model_validate(values, context=workshop)
    except ValidationError as error:
        excused = {"unsettled", "missing"} if abstract else {"unsettled"}
        details = [detail for detail in error.errors(include_url=False) if detail["type"] not in excused]
        faults += [_fault(detail, composed, workshop) for detail in details]
    if faults:
        raise RecipeError(faults)
    if recipe is None:
        return Checked(None, composed)
    root = composed.root
    faults = [
        Fault(message, locate(root, _path_in_tree(at, root), prefer="value"), hint)
        for at, message, hint in broken_rules(recipe)
    ]
    if faults:
        raise RecipeError(faults)
    return Checked(None if abstract else recipe, composed)


def _says_abstract(root: Node, file: Path) -> bool:
    """Whether the file itself says `abstract: true`; what a parent says of itself is not inherited."""
    said = root.value.get("abstract") if isinstance(root.value, dict) else None
    return said is not None and said.value is True and said.place.file == str(file)


def _removed_unknown(composed: Composed, workshop: RecipeWorkshop) -> Iterator[Fault]:
    """A key that a null removes and that could not stand there anyway is misspelt."""
    for path, place in composed.removed:
        options = _keys_at(path[:-1], composed, workshop)
        if options and path[-1] not in options:
            close = nearest(path[-1], options)
            hint = f"did you mean '{close}'?" if close else None
            yield Fault(f"unknown key '{path[-1]}'{_within(path)}", place, hint)


def shorthand(path: tuple[str, ...]) -> str | None:
    """The key that a bare string at this path stands for: `use` for parts, `path` for models."""
    if path in (("model",), ("reference",), ("critic",)):
        return "path"
    return "use" if slot_at(path) else None


def slot_at(path: Sequence[str | int]) -> str | None:
    """The slot that the value at this path fills, or None."""
    keys = [str(key) for key in path]
    if keys and keys[-1].isdigit():
        keys.pop()
    if keys in (["data"], ["reward"]):
        return keys[0]
    if keys == ["rollout", "engine"]:
        return "engine"
    if len(keys) == 2 and keys[0] == "estimator" and keys[1] in ("switch", "shaping"):
        return keys[1]
    if len(keys) == 4 and keys[:2] == ["estimator", "terms"]:
        return keys[3] if keys[3] in ("mask", "denominator", "advantage", "reduction") else None
    return None


def _fault(detail: ErrorDetails, composed: Composed, workshop: RecipeWorkshop) -> Fault:
    """One Pydantic error as a fault at its place: an unknown key at the key, a missing one at the enclosing block's."""
    path = _path_in_tree(detail["loc"], composed.root)
    context = detail.get("ctx", {})
    match detail["type"]:
        case "extra_forbidden":
            key = str(path[-1])
            options = _keys_at(path[:-1], composed, workshop)
            close = nearest(key, options)
            hint = f"did you mean '{close}'?" if close else f"possible here: {', '.join(options)}"
            return Fault(f"unknown key '{key}'{_within(path)}", locate(composed.root, path, prefer="key"), hint)
        case "missing":
            return Fault(f"'{path[-1]}' is missing{_within(path)}", locate(composed.root, path[:-1], prefer="key"))
        case "literal_error":
            close = nearest(str(detail["input"]), _choices(str(context.get("expected", ""))))
            meant = f"did you mean '{close}'?" if close else None
            return Fault(_message(detail, path), locate(composed.root, path, prefer="value"), meant)
    return Fault(_message(detail, path), locate(composed.root, path, prefer="value"), context.get("hint") or None)


def _path_in_tree(loc: Sequence[str | int], node: Node | None) -> PathInRecipe:
    """Pydantic's location as a path in the YAML: without union tags, and without the index of a list of one."""
    path: list[str | int] = []
    for key in loc:
        value = node.value if node is not None else None
        if str(key).startswith("[") or (isinstance(key, int) and not isinstance(value, tuple)):
            continue
        path.append(key)
        if isinstance(value, dict):
            node = value.get(str(key))
        else:
            node = value[key] if isinstance(value, tuple) and isinstance(key, int) and key < len(value) else None
    return tuple(path)


def _message(detail: ErrorDetails, path: PathInRecipe) -> str:
    message = detail["msg"]
    if detail["type"] in ("refused", "part_unknown", "part_type", "part_use"):
        return message
    message = re.sub(r"a valid dictionary( or instance of \w+)?", "a map", message.replace("Input should", "should", 1))
    message = message.replace("a valid tuple", "a list")
    return f"'{path[-1]}' {message}, not {_shown(detail['input'])}" if path else message


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"'{value}'"
        case dict():
            return "a map"
        case tuple() | list():
            return "a list"
    return str(value)


def _choices(expected: str) -> list[str]:
    return [word.strip("' ") for word in expected.replace(" or ", ", ").split(", ")]


def _within(path: Sequence[str | int]) -> str:
    return f" in {'.'.join(map(str, path[:-1]))}" if path[:-1] else ""


def _keys_at(path: Sequence[str | int], composed: Composed, workshop: RecipeWorkshop) -> list[str]:
    """The keys that are possible in the block at this path."""
    slot = slot_at(path)
    if slot is None:
        block = _block(path)
        return list(block.model_fields) if block else []
    try:
        part = functools.reduce(lambda block, key: block[key], path, plain(composed.root))
        return ["use", *workshop.find(SLOTS[slot], part["use"]).fields()]
    except (LookupError, TypeError):
        return ["use"]


def _block(path: Sequence[str | int]) -> type[Settings] | None:
    """The schema of the block at this path, following the annotations down from `Recipe`."""
    annotation: Any = Recipe
    for key in path:
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            if key not in annotation.model_fields:
                return None
            annotation = annotation.model_fields[str(key)].annotation
        elif arguments := typing.get_args(annotation):
            annotation = arguments[-1]
        annotation = _bare(annotation)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def _bare(annotation: Any) -> Any:
    """The block type inside an optional or a union with a number."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        kinds = [_bare(choice) for choice in typing.get_args(annotation)]
        return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), kinds[0])
    return annotation
