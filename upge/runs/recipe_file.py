"""The recipe.yaml of a run folder: how it differs from another recipe, and the command that goes on with it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from upge.code import named_by
from upge.errors import InputError
from upge.recipe.faults import RecipeError
from upge.recipe.qualified_names import comparable
from upge.recipe.schema import Recipe
from upge.recipe.yaml import Node, parse, plain, read
from upge.runs.folder import RunFolder


def command(recipe: Recipe, folder: Path) -> str:
    """The command that goes on with a run."""
    has_code = (folder / "code").is_dir() or any(map(named_by, recipe.parts().values()))
    return f"upge run --resume {shlex.quote(str(folder))}" + (" --allow-code" if has_code else "")


def changed(recipe: Recipe, folder: Path, *, free: Sequence[str] = ("log",)) -> list[str]:
    """A line for each setting that differs from the run's recipe.yaml, without those that are `free` to.

    Raises InputError where that can't be read.
    """
    file = folder / "recipe.yaml"
    theirs = settings_of(kept(folder))
    ours = settings_of(comparable(parse(RunFolder(folder, writes=False).resolved(recipe), str(file)), file))
    return [
        f"  {key}: {theirs.get(key, 'not set')!s} there, {ours.get(key, 'not set')!s} here"
        for key in sorted({*theirs, *ours})
        if theirs.get(key) != ours.get(key)
        and not any(f"{key}.".startswith(f"{name}.") for name in free)
        and not (key not in theirs and _by_default(recipe, key))
    ]


def _by_default(recipe: Recipe, key: str) -> bool:
    """Whether a setting of a block has its default: a run that was begun before there was the setting had that too."""
    block, _, name = key.partition(".")
    settings = getattr(recipe, block, None)
    field = getattr(type(settings), "model_fields", {}).get(name)
    return field is not None and getattr(settings, name) == field.get_default(call_default_factory=True)


def kept(folder: Path) -> Node:
    """The recipe that a run's folder holds. Raises InputError where that can't be read."""
    file = folder / "recipe.yaml"
    try:
        return comparable(read(file), file)
    except RecipeError as error:
        raise InputError(f"{file} can't be read: {' '.join(str(error).split())}") from error


def settings_of(root: Node) -> dict[str, Any]:
    """The settings of a recipe by their dotted paths."""
    return dict(flat(plain(root), ""))


def flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """What stands in nested maps below `path`, by an override's dotted path (`mask.0.high`); other lists as JSON."""
    if isinstance(value, list | tuple) and value and all(isinstance(each, dict) for each in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from flat(below, f"{path}.{key}" if path else str(key))
    else:
        plain = isinstance(value, bool | int | float | str)
        yield path, value if plain else json.dumps(value, ensure_ascii=False)
