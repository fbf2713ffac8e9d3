"""The runs of a sweep: which recipe, with which settings and seed, in which folder."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from upge.errors import InputError
from upge.recipe.faults import Fault, RecipeError
from upge.recipe.resolve import load
from upge.recipe.schema import Recipe
from upge.runs.reader import RunReader
from upge.runs.recipe_file import changed
from upge.sweep.groups import SEED

"""What is varied by `--seeds`."""


@dataclass(frozen=True)
class Varied:
    """A setting and its values. Attributes: key: its dotted path. values: YAML, each as it was written."""

    key: str
    values: tuple[str, ...]

    def overrides(self) -> list[tuple[str, str]]:
        """(key, value) for each value."""
        return [(self.key, value) for value in self.values]


def parse(text: str) -> Varied:
    """`KEY=V1,V2`: what follows the `=` is a YAML list without its brackets; `{…}`, `[…]` and `'…'` keep their commas.

    Raises InputError: no key, no value, or no such list.
    """
    key, equals, listed = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"--vary {text}: write a setting and its values, --vary optimizer.lr=1e-5,3e-5")
    try:
        items = YAML(typ="safe", pure=True).compose(f"[{listed}\n]").value
    except (YAMLError, AttributeError) as error:
        hint = "values are YAML with commas between them; write values that contain commas in quotes or brackets"
        raise InputError(f"--vary {text}: {hint}") from error
    values = tuple(f"[{listed}"[item.start_mark.index : item.end_mark.index] for item in items)
    unread = f"[{listed}"[items[-1].end_mark.index :].strip() if items else ""
    if not values or "" in values or unread == ",":
        raise InputError(f"--vary {text}: a value is missing; null removes a setting, '' is the empty text")
    if unread:
        raise InputError(f"--vary {text}: '{unread}' is no value; put a text that begins with # in quotes")
    return Varied(key.strip(), values)


def slug(text: str) -> str:
    """A value as part of a folder's name."""
    return re.sub(r"[^\w.+=-]+", "_", text).strip("_")


Standing = Literal["new", "unfinished", "finished"]
LONGEST = 200
"""Bytes of a run folder's name; file systems take 255, and files beside the folder have longer ones."""


@dataclass(frozen=True)
class Cell:
    """One run of a grid.

    Attributes:
        name: the recipe's, what is varied and the seed; the run folder is called so.
        words: recipe and overrides, as for `upge run`. recipe: what they say. folder: of the run.
    """

    name: str
    words: tuple[str, ...]
    recipe: Recipe
    folder: Path

    @property
    def log(self) -> Path:
        """The file beside the folder that has what the run says."""
        return self.folder.with_name(f"{self.folder.name}.log")

    def standing(self) -> Standing:
        """How far the run is.

        Raises InputError: its folder is at work, is another run's or no run's at all.
        """
        if not self.folder.exists() or (self.folder.is_dir() and not any(self.folder.iterdir())):
            return "new"
        run = RunReader(self.folder)
        if not run.has_recipe:
            raise InputError(f"{self.folder} is there and is no run folder; move it, or set log.folder")
        if run.busy:
            raise InputError(f"{self.folder}: a process is at work in this run folder")
        if differing := changed(self.recipe, run):
            head = f"{self.folder} was begun with other settings than these, and a grid can't change its settings:"
            raise InputError("\n".join([head, *differing, "set log.folder to keep both, or move the folder"]))
        return "unfinished" if run.end is None else "finished"

    def arguments(self, standing: Standing) -> list[str]:
        """What `upge run` takes to begin this run, or to go on with it."""
        there = f"log.folder={json.dumps(str(self.folder), ensure_ascii=False)}"
        return [*self.words, there, *(["--resume", str(self.folder)] if standing == "unfinished" else [])]


def planned(
    recipes: Sequence[str],
    overrides: Sequence[str] = (),
    varied: Sequence[Varied] = (),
    seeds: int | None = None,
    *,
    allow_code: bool = False,
) -> list[Cell]:
    """Every run: each recipe with each choice of values, for one seed after the other.

    Seeds come last, so that a grid which was stopped half-way has compared all recipes on its first seeds.

    Raises RecipeError with every fault of every recipe. InputError: two runs would share a folder.
    """
    cells: list[Cell] = []
    faults: dict[str, Fault] = {}
    for choice in _choices(varied, seeds):
        for recipe in recipes:
            try:
                cells.append(_cell(recipe, overrides, choice, allow_code=allow_code))
            except RecipeError as error:
                faults |= {str(fault): fault for fault in error.faults}
    if faults:
        raise RecipeError(list(faults.values()))
    _refuse_sharing(cells)
    return cells


def standings(cells: Sequence[Cell]) -> list[Standing]:
    """How far each run is. Raises InputError with what is wrong with all of their folders."""
    found: list[Standing] = []
    wrong = []
    for cell in cells:
        try:
            found.append(cell.standing())
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError("\n".join(wrong))
    return found


def _choices(varied: Sequence[Varied], seeds: int | None) -> Iterator[tuple[tuple[str, str], ...]]:
    """(key, value) of every setting, the last one's values slowest."""
    numbered = [] if seeds is None else [Varied(SEED, tuple(map(str, range(seeds))))]
    axes = [*numbered, *reversed([*varied])]
    keys = [axis.key for axis in axes]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise InputError(f"{twice[0]} is varied twice" + (", by --seeds and by --vary" if twice[0] == SEED else ""))
    for choice in product(*(axis.overrides() for axis in axes)):
        yield choice[::-1]


def _cell(source: str, overrides: Sequence[str], choice: Sequence[tuple[str, str]], *, allow_code: bool) -> Cell:
    words = [*overrides, *(f"{key}={value}" for key, value in choice)]
    recipe = load(source, words, allow_code=allow_code)
    settings = [f"{key}={slug(value)}" for key, value in choice if key != SEED]
    name = "-".join([recipe.name, *settings, f"s{recipe.train.seed}"])
    if len(name.encode()) > LONGEST:
        raise InputError(f"the run folder's name would be too long: {name}")
    wanted = recipe.log.path(name)
    folder = wanted if "{name}" in recipe.log.folder else wanted / name
    return Cell(name, (source, *words, *(["--allow-code"] if allow_code else [])), recipe, folder)


def _refuse_sharing(cells: Sequence[Cell]) -> None:
    folders: dict[Path, Cell] = {}
    recipes: dict[Recipe, Cell] = {}
    for cell in cells:
        if (other := folders.setdefault(cell.folder, cell)) is not cell:
            raise InputError(
                f"two runs of this grid would have the folder {cell.folder}:\n{_both(other, cell)}\nname them apart"
            )
        if (other := recipes.setdefault(cell.recipe, cell)) is not cell:
            raise InputError(f"two runs of this grid would be the same:\n{_both(other, cell)}\nleave one of them out")


def _both(*cells: Cell) -> str:
    return "\n".join(f"  upge run {' '.join(cell.words)}" for cell in cells)
