"""`upge run`: train what a recipe says."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from upge.command.app import app
from upge.command.arguments import AllowCode
from upge.command.grid import Jobs, Seeds, Vary, asked_for, refuse, run_grid
from upge.command.planning import Config, DryRun, Processes, PromptTokens, check_given, show_plan

Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[RECIPE]... [KEY=VALUE]...",
        help="A recipe file, or the name of one that ships; several make a grid; with --resume the run's own. "
        "Then overrides: dotted.path=YAML value.",
    ),
]


@app.command()
def run(
    words: Words = None,
    allow_code: AllowCode = False,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Go on with the run in this folder from its newest checkpoint.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--continue", help="Go on with the newest unfinished run of this recipe, if there is one.")
    ] = False,
    dry_run: DryRun = False,
    processes: Processes = None,
    config: Config = None,
    prompt_tokens: PromptTokens = None,
    seeds: Seeds = None,
    vary: Vary = None,
    jobs: Jobs = None,
) -> None:
    """Train what a recipe says, and leave a run folder; or a grid: several recipes, settings and seeds."""
    from upge.command.launching import due, launch
    from upge.command.locating import located
    from upge.command.resuming import named
    from upge.errors import InputError
    from upge.recipe import load_composed

    check_given(dry_run, config, prompt_tokens)
    given = words or []
    if (grid := asked_for(given, seeds, vary or [], jobs)) is not None:
        single = {"--resume": resume, "--continue": again or None, "--processes": processes}
        refuse({**single, "--config": config, "--prompt-tokens": prompt_tokens})
        run_grid(grid, allow_code=allow_code, dry_run=dry_run)
        return
    if resume is not None and again:
        raise InputError("--resume names the run to go on with, --continue looks for it: give one of them")
    path, overrides = named(given[0] if given else None, given[1:], resume)
    loaded, composed = load_composed(path, overrides, allow_code=allow_code)
    if dry_run:
        show_plan(loaded, composed, processes, config, prompt_tokens)
        return
    if due(processes):
        raise typer.Exit(launch(processes or 1, sys.argv[1:]))
    from upge.run.trainer import train

    with located(composed):
        folder = train(loaded, resume=resume, again=again)
    if os.environ.get("RANK", "0") == "0":
        typer.echo(_report(folder, allow_code), err=True)


def _report(folder: Path, allow_code: bool) -> str:
    """Where the run's report is, or why there is none: the run is finished all the same."""
    from upge.report.writing import write

    try:
        return f"report: {write([folder], allow_code=allow_code)}"
    except Exception as error:  # nothing that befalls a report makes the run another
        return f"the run is finished; its report could not be written: {error}\nto write it again: upge report {folder}"
