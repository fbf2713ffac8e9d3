"""`upge explain`: a recipe as the paper's formula, with the parts filled in."""

from __future__ import annotations

import typer

from upge.command import app
from upge.command.arguments import AllowCode, Overrides, RecipePath


@app.command()
def explain(recipe: RecipePath, overrides: Overrides = None, allow_code: AllowCode = False) -> None:
    """Print a recipe's gradient as a formula: per term the mask, ratio, advantage, reduction, and what each reads."""
    from upge.recipe import load
    from upge.recipe.formula import explanation

    typer.echo(explanation(load(recipe, overrides or (), allow_code=allow_code)))
