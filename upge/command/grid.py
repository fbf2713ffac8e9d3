"""Several runs by one `upge run`: recipes, values of settings, seeds."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from upge.grid.cells import Cell
    from upge.grid.working import Task

Seeds = Annotated[int | None, typer.Option(min=1, help="A grid: each recipe with the seeds 0 … N − 1.", metavar="N")]
Vary = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=V1,V2", help="A grid: each recipe with each value; may be given several times."),
]
Jobs = Annotated[
    int | None, typer.Option(min=1, metavar="J", help="How many runs of a grid at a time; as the cores allow.")
]


@dataclass(frozen=True)
class Grid:
    """What a command line asks for: recipes with overrides, settings to vary, how many seeds, runs at a time."""

    recipes: Sequence[str]
    overrides: Sequence[str]
    vary: Sequence[str]
    seeds: int | None
    jobs: int | None


def asked_for(words: Sequence[str], seeds: int | None, vary: Sequence[str], jobs: int | None) -> Grid | None:
    """The grid that the words and options of a command line ask for; None where it is a single run."""
    # Path.is_file raises for a name that is too long.
    first = next((i for i, word in enumerate(words) if "=" in word and not os.path.isfile(word)), len(words))  # noqa: PTH113
    recipes, overrides = words[:first], words[first:]
    if seeds is None and not vary and jobs is None and not (len(recipes) > 1 and all(map(_is_recipe, recipes))):
        return None
    return Grid(recipes, overrides, vary, seeds, jobs)


def _is_recipe(text: str) -> bool:
    from upge.recipe import RecipeError
    from upge.recipe.finding import find_recipe

    try:
        return os.path.isfile(find_recipe(text))  # noqa: PTH113 (see above)
    except RecipeError:
        return False


def refuse(options: Mapping[str, object]) -> None:
    """Raise InputError where an option of a single run is given with a grid, or a launcher has started it."""
    from upge.errors import InputError

    reasons = {
        "--resume": "the same command again goes on with a grid",
        "--continue": "the same command again goes on with a grid",
        "--processes": "each run of a grid has one process; --jobs says how many runs go at a time",
    }
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} is for a single run; {reasons.get(name, 'give one recipe')}")
    if "WORLD_SIZE" in os.environ:
        raise InputError("a grid starts processes itself; start it without a launcher")


def run_grid(asked: Grid, *, allow_code: bool, dry_run: bool) -> None:
    """Run what is asked for, and compare it.

    Raises InputError or RecipeError: something is wrong with what was given. Exit: 1 where a run failed; 130, 143.
    """
    from upge.errors import InputError
    from upge.grid.cells import planned, standings
    from upge.grid.varying import parse
    from upge.grid.working import Task

    if not asked.recipes:
        raise InputError("name a recipe (upge list recipes shows those that ship), or several")
    varied = [parse(text) for text in asked.vary]
    cells = planned(asked.recipes, asked.overrides, varied, asked.seeds, allow_code=allow_code)
    tasks = [Task(cell, standing) for cell, standing in zip(cells, standings(cells), strict=True)]
    for task in tasks:
        task.state = "finished" if task.standing == "finished" else "waiting"
    if dry_run:
        _list(tasks)
    else:
        number = _work(tasks, asked.jobs)
        _conclude(tasks, number)


def _list(tasks: Sequence[Task]) -> None:
    """What would run: each run's folder and how far that is."""
    for task in tasks:
        typer.echo(f"{task.standing}\t{task.cell.folder}")


def _work(tasks: Sequence[Task], jobs: int | None) -> int:
    """Run them; the signal that stopped them, or 0."""
    from upge.grid.showing import Show
    from upge.grid.working import Workers, jobs_for

    with Show(tasks) as show:
        workers = Workers(tasks, jobs or jobs_for([task.cell.recipe for task in tasks]), show)
        workers.work()
    return workers.asked


def _conclude(tasks: Sequence[Task], number: int) -> None:
    """Say what failed and how to go on, or compare what is finished."""
    failed = [task for task in tasks if task.state == "failed"]
    for task in failed:
        typer.echo(f"{task.cell.name} failed, its log is {task.cell.log}:\n{_indented(task.reason)}", err=True)
    finished = sum(task.state == "finished" for task in tasks)
    if number or failed:
        again = f"to go on with the others: {_command()}"
        typer.echo(f"{finished} of {len(tasks)} runs are finished; {again}", err=True)
        raise typer.Exit(128 + number if number else 1)
    _compare([task.cell for task in tasks])


def _compare(cells: Sequence[Cell]) -> None:
    from upge.command.compare import compare_runs

    folders = [cell.folder for cell in cells]
    typer.echo(f"all {len(cells)} runs are finished: upge compare {shlex.join(map(str, folders))}", err=True)
    compare_runs(folders)


def _command() -> str:
    from upge.records.folder import masked

    return shlex.join(["upge", *map(masked, sys.argv[1:])])


def _indented(text: str) -> str:
    from upge.files import shown

    return "\n".join(f"  {shown(line)}" for line in text.splitlines())
