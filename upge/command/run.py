"""`upge run`: train what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from upge.command import app
from upge.command.arguments import AllowCode, Overrides, RecipePath


@app.command()
def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    allow_code: AllowCode = False,
    resume: Annotated[
        Path | None, typer.Option(help="Continue the run in this folder from its newest checkpoint.")
    ] = None,
) -> None:
    """Train what a recipe says, and leave a run folder."""
    from upge.command.locating import located
    from upge.errors import InputError
    from upge.recipe import load_composed
    from upge.run.trainer import train

    loaded, composed = load_composed(recipe, overrides or (), allow_code=allow_code)
    if resume is not None and not resume.is_dir():
        raise InputError(f"--resume: there is no run folder '{resume}'")
    with located(composed):
        train(loaded, resume=resume)
