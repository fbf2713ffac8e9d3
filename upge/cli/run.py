"""`upge run`: train a recipe."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upge.cli.app import app
from upge.cli.arguments import AllowCode, Processes

if TYPE_CHECKING:
    from upge.recipe.compose import Composed
    from upge.recipe.schema import Recipe
    from upge.sweep.axes import Cell
    from upge.sweep.executor import Task

Seeds = Annotated[
    int | None, typer.Option(min=1, help="Makes a grid: each recipe with the seeds 0 … N − 1.", metavar="N")
]
Vary = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=V1,V2", help="Makes a grid: each recipe with each value; may be given several times."),
]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, metavar="J", help="The number of runs of a grid at a time; by default as the cores allow."),
]


@dataclass(frozen=True)
class Grid:
    """The grid of a command line: recipes with overrides, settings to vary, number of seeds, runs at a time."""

    recipes: Sequence[str]
    overrides: Sequence[str]
    vary: Sequence[str]
    seeds: int | None
    jobs: int | None


def grid_of(words: Sequence[str], seeds: int | None, vary: Sequence[str], jobs: int | None) -> Grid | None:
    """The grid in the words and options of a command line; None for a single run."""
    # Path.is_file raises for a name that is too long.
    first = next((i for i, word in enumerate(words) if "=" in word and not os.path.isfile(word)), len(words))  # noqa: PTH113
    recipes, overrides = words[:first], words[first:]
    if seeds is None and not vary and jobs is None and not (len(recipes) > 1 and all(map(_is_recipe, recipes))):
        return None
    return Grid(recipes, overrides, vary, seeds, jobs)


def _is_recipe(text: str) -> bool:
    from upge.recipe.catalog import find_recipe
    from upge.recipe.faults import RecipeError

    try:
        return os.path.isfile(find_recipe(text))  # noqa: PTH113 (see above)
    except RecipeError:
        return False


def refuse(options: Mapping[str, object]) -> None:
    """Raise InputError where an option of a single run is given with a grid, or a launcher has started it."""
    from upge.errors import InputError

    reasons = {
        "--resume": "to resume a grid, repeat its command",
        "--continue": "to resume a grid, repeat its command",
        "--processes": "each run of a grid has one process; --jobs is the number of runs at a time",
    }
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} is for a single run; {reasons.get(name, 'give one recipe')}")
    if "WORLD_SIZE" in os.environ:
        raise InputError("a grid starts processes itself; start it without a launcher")


def run_grid(grid: Grid, *, allow_code: bool, dry_run: bool) -> None:
    """Run a grid, and compare its runs.

    Raises InputError or RecipeError: something is wrong with what was given. Exit: 1 where a run failed; 130, 143.
    """
    from upge.errors import InputError
    from upge.sweep.axes import parse, planned, standings
    from upge.sweep.executor import Task

    if not grid.recipes:
        raise InputError("name a recipe, or several (upge list recipes lists the shipped ones)")
    varied = [parse(text) for text in grid.vary]
    cells = planned(grid.recipes, grid.overrides, varied, grid.seeds, allow_code=allow_code)
    tasks = [Task(cell, standing) for cell, standing in zip(cells, standings(cells), strict=True)]
    for task in tasks:
        task.state = "finished" if task.standing == "finished" else "waiting"
    if dry_run:
        _list(tasks)
    else:
        number = _work(tasks, grid.jobs)
        _conclude(tasks, number)


def _list(tasks: Sequence[Task]) -> None:
    """Print each run's folder and state."""
    for task in tasks:
        typer.echo(f"{task.standing}\t{task.cell.folder}")


def _work(tasks: Sequence[Task], jobs: int | None) -> int:
    """Run them; the signal that stopped them, or 0."""
    from upge.sweep.executor import Show, Workers, jobs_for

    with Show(tasks) as show:
        workers = Workers(tasks, jobs or jobs_for([task.cell.recipe for task in tasks]), show)
        workers.work()
    return workers.asked


def _conclude(tasks: Sequence[Task], number: int) -> None:
    """Report failed runs and the command to resume, or compare the finished runs."""
    failed = [task for task in tasks if task.state == "failed"]
    for task in failed:
        typer.echo(f"{task.cell.name} failed, its log is {task.cell.log}:\n{_indented(task.reason)}", err=True)
    finished = sum(task.state == "finished" for task in tasks)
    if number or failed:
        again = f"to resume the others: {_command()}"
        typer.echo(f"{finished} of {len(tasks)} runs are finished; {again}", err=True)
        raise typer.Exit(128 + number if number else 1)
    _compare([task.cell for task in tasks])


def _compare(cells: Sequence[Cell]) -> None:
    from upge.cli.compare import compare_runs

    folders = [cell.folder for cell in cells]
    typer.echo(f"all {len(cells)} runs are finished: upge compare {shlex.join(map(str, folders))}", err=True)
    compare_runs(folders)


def _command() -> str:
    from upge.runs.folder import masked

    return shlex.join(["upge", *map(masked, sys.argv[1:])])


def _indented(text: str) -> str:
    from upge.files import shown

    return "\n".join(f"  {shown(line)}" for line in text.splitlines())


DryRun = Annotated[bool, typer.Option("--dry-run", help="Estimate the run's cost, offline, and exit.")]
Config = Annotated[Path | None, typer.Option(help="With --dry-run: a config.json in place of the model's own.")]
PromptTokens = Annotated[int | None, typer.Option(min=1, help="With --dry-run: the longest prompt; by default 1024.")]


def check_plan_options(dry_run: bool, config: Path | None, prompt_tokens: int | None) -> None:
    """Raise InputError if an option of `--dry-run` is given without it."""
    from upge.errors import InputError

    options = {"--config": config, "--prompt-tokens": prompt_tokens}
    for name, value in options.items():
        if value is not None and not dry_run:
            raise InputError(f"{name} goes with --dry-run")


def show_plan(
    recipe: Recipe, composed: Composed, processes: int | None, config: Path | None, prompt_tokens: int | None
) -> None:
    """Print the plan of a recipe on stdout. Raises RecipeError with the place of what would fail."""
    from rich.console import Console

    from upge.plan import plan
    from upge.plan.display import show

    planned = plan(recipe, composed, processes=processes, config=config, prompt_tokens=prompt_tokens)
    show(planned, Console(highlight=False, markup=False))


def named(recipe: str | None, overrides: Sequence[str], resume: Path | None) -> tuple[str, list[str]]:
    """The recipe's file and the overrides: those given, or, for a run to be resumed, the one in its folder.

    Raises InputError: no recipe is named; there is no such run folder.
    """
    from upge.errors import InputError
    from upge.runs.reader import RunReader

    if resume is None:
        if recipe is None:
            raise InputError("name a recipe (upge list recipes lists the shipped ones), or a run: --resume RUN")
        return recipe, list(overrides)
    if not os.path.isdir(resume):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        raise InputError(f"--resume: there is no run folder '{resume}'")
    if recipe is not None and (Path(recipe).is_file() or "=" not in recipe):
        return recipe, list(overrides)
    run = RunReader(resume)
    if not run.has_recipe:
        raise InputError(f"--resume: '{resume}' is not the folder of a run: it has no recipe.yaml")
    here = f"log.folder={json.dumps(str(resume), ensure_ascii=False)}"  # where it is now, however it was called before
    return str(run.recipe_file), [here, *([] if recipe is None else [recipe]), *overrides]


Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE]... [KEY=VALUE]...",
        help="A recipe file, or the name of a shipped one; several make a grid; by default --resume's own. "
        "Then overrides: dotted.path=YAML value.",
    ),
]


@app.command()
def run(
    words: Words = None,
    allow_code: AllowCode = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Resume the run in this folder from its newest checkpoint.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--continue", help="Resume the newest unfinished run of this recipe, if there is one.")
    ] = False,
    dry_run: DryRun = False,
    processes: Processes = None,
    config: Config = None,
    prompt_tokens: PromptTokens = None,
    seeds: Seeds = None,
    vary: Vary = None,
    jobs: Jobs = None,
) -> None:
    """Train a recipe and write a run folder; or run a grid: several recipes, settings and seeds."""
    from upge.distributed.launcher import due, launch
    from upge.errors import InputError
    from upge.recipe.resolve import load_composed

    check_plan_options(dry_run, config, prompt_tokens)
    arguments = words or []
    if (grid := grid_of(arguments, seeds, vary or [], jobs)) is not None:
        single = {"--resume": resume, "--continue": again or None, "--processes": processes}
        refuse({**single, "--config": config, "--prompt-tokens": prompt_tokens})
        run_grid(grid, allow_code=allow_code, dry_run=dry_run)
        return
    if resume is not None and again:
        raise InputError("--resume names the run to resume, --continue finds it: give one of them")
    path, overrides = named(arguments[0] if arguments else None, arguments[1:], resume)
    loaded, composed = load_composed(path, overrides, allow_code=allow_code)
    if dry_run:
        show_plan(loaded, composed, processes, config, prompt_tokens)
        return
    if due(processes):
        raise typer.Exit(launch(processes or 1, sys.argv[1:]))
    folder = _trained(loaded, composed, resume, again=again)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(_report(folder, allow_code), err=True)


def _trained(recipe: Recipe, composed: Composed, resume: Path | None, *, again: bool) -> Path:
    """The folder of the run; what a part raises has its place in the recipe."""
    from upge.cli.arguments import located
    from upge.train.run import train

    with located(composed):
        return train(recipe, resume=resume, again=again)


def _report(folder: Path, allow_code: bool) -> str:
    """Where the run's report is, or why there is none: the run is finished all the same."""
    from upge.report.write import write

    try:
        return f"report: {write([folder], allow_code=allow_code)}"
    except Exception as error:  # an error in the report doesn't change the run
        return f"the run is finished; its report could not be written: {error}\nto write it again: upge report {folder}"
