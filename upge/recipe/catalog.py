"""Where recipes are: files, those that ship with upge, and those that installed packages bring."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from upge import registry
from upge.recipe.faults import Fault, RecipeError
from upge.suggestions import did_you_mean


@dataclass(frozen=True)
class RecipeEntry:
    """A recipe that an installed package brings: `name` or `package/name` finds it from any folder."""

    name: str
    package: str
    path: Path


def shipped_recipes() -> Path:
    """The folder of the recipes that ship: in the wheel `upge/recipes`, in a checkout `recipes` beside `upge`."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def shelved() -> list[RecipeEntry]:
    """Every recipe of every installed package, upge's own first, by name."""
    folders = [("upge", shipped_recipes()), *registry.recipe_folders()]
    return [
        RecipeEntry(path.stem, package, path) for package, folder in folders for path in sorted(folder.glob("*.yaml"))
    ]


def find_recipe(path: str | Path) -> Path:
    """The file, or where there is none the recipe of that name: `grpo`, `upge-chord/chord_mu`, `recipes/grpo.yaml`.

    Raises RecipeError for a bare name that no package's recipe has, or that several have.
    """
    file = Path(path)
    if os.path.isfile(file) or file.is_absolute():  # noqa: PTH113 (Path.is_file raises for a name that is too long)
        return file
    shipped = _shipped(file)
    if shipped is not None:
        return shipped
    if file.suffix or len(file.parts) > 2:
        return file
    return _by_name(str(path))


def _shipped(file: Path) -> Path | None:
    name = file.relative_to("recipes") if file.parts[:1] == ("recipes",) else file
    path = shipped_recipes() / (name if name.suffix else f"{name}.yaml")
    return path if os.path.isfile(path) else None  # noqa: PTH113 (see above)


def _by_name(text: str) -> Path:
    package, _, name = text.rpartition("/")
    everything = shelved()
    matches = [entry for entry in everything if entry.name == name and package in ("", entry.package)]
    if len(matches) == 1:
        return matches[0].path
    if matches:
        choices = " or ".join(f"{entry.package}/{name}" for entry in matches)
        raise RecipeError(
            [Fault(f"{len(matches)} packages have a recipe called '{name}'", None, f"write one of: {choices}")]
        )
    names = [entry.name for entry in everything]
    hint = did_you_mean(name, names, "`upge list recipes` shows those that there are")
    raise RecipeError([Fault(f"there is neither a file nor a recipe called '{text}'", None, hint)])
