"""`upge run`: train what a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upge.command import app
from upge.command.arguments import AllowCode, Overrides, RecipePath

if TYPE_CHECKING:
    from upge.asking import PartError
    from upge.recipe import Composed


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
    from upge.asking import PartError
    from upge.errors import InputError
    from upge.recipe import load_composed
    from upge.run.trainer import train

    loaded, composed = load_composed(recipe, overrides or (), allow_code=allow_code)
    if resume is not None and not resume.is_dir():
        raise InputError(f"--resume: there is no run folder '{resume}'")
    try:
        train(loaded, resume=resume)
    except PartError as error:
        raise _located(error, composed) from error


def _located(error: PartError, composed: Composed) -> PartError:
    """The error with the place at which the recipe names the part."""
    from upge.asking import PartError
    from upge.recipe import Fault
    from upge.recipe.merging import place_of

    return PartError(str(Fault(str(error), place_of(composed.root, error.place))), error.place)
