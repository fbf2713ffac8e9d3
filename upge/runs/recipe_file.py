"""The recipe.yaml of a run folder: how it differs from another recipe, and the command that goes on with it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from upge.code import named_by
from upge.recipe.qualified_names import comparable
from upge.recipe.schema import Recipe
from upge.recipe.yaml import parse, plain
from upge.runs.folder import RunFolder
from upge.runs.reader import RunReader, flat


def command(recipe: Recipe, folder: Path) -> str:
    """The command that goes on with a run."""
    has_code = (folder / "code").is_dir() or any(map(named_by, recipe.parts().values()))
    return f"upge run --resume {shlex.quote(str(folder))}" + (" --allow-code" if has_code else "")


def changed(recipe: Recipe, run: RunReader, *, free: Sequence[str] = ("log",)) -> list[str]:
    """A line for each setting that differs from the run's recipe.yaml, without those that are `free` to.

    Raises InputError where that can't be read.
    """
    theirs, file = run.settings, run.recipe_file
    text = RunFolder(run.folder, writes=False).resolved(recipe)
    ours = dict(flat(plain(comparable(parse(text, str(file)), file)), ""))
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
