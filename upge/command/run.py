"""`upge run`: train what a recipe says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from upge.command import app
from upge.command.arguments import AllowCode, Overrides
from upge.command.planning import Config, DryRun, Processes, PromptTokens, check_given, show_plan


@app.command()
def run(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]", help="A recipe file, or the name of one that ships; with --resume the run's own."
        ),
    ] = None,
    overrides: Overrides = None,
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
) -> None:
    """Train what a recipe says, and leave a run folder."""
    from upge.command.launching import due, launch
    from upge.command.locating import located
    from upge.command.resuming import named
    from upge.errors import InputError
    from upge.recipe import load_composed

    check_given(dry_run, config, prompt_tokens)
    if resume is not None and again:
        raise InputError("--resume names the run to go on with, --continue looks for it: give one of them")
    path, given = named(recipe, overrides or (), resume)
    loaded, composed = load_composed(path, given, allow_code=allow_code)
    if dry_run:
        show_plan(loaded, composed, processes, config, prompt_tokens)
        return
    if due(processes):
        raise typer.Exit(launch(processes or 1, sys.argv[1:]))
    from upge.run.trainer import train

    with located(composed):
        train(loaded, resume=resume, again=again)
