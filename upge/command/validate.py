"""`upge validate`: every fault of a recipe at once, with its place; no model is loaded."""

from __future__ import annotations

import typer

from upge.command import app
from upge.command.arguments import AllowCode, Overrides, RecipePath


@app.command()
def validate(recipe: RecipePath, overrides: Overrides = None, allow_code: AllowCode = False) -> None:
    """Check a recipe without running it: names, types, bounds, and what its parts need."""
    from upge.recipe import check

    checked = check(recipe, overrides or (), allow_code=allow_code)
    if checked.recipe is None:
        typer.echo(f"{recipe}: a fragment to extend, right as far as it goes")
        return
    opens = checked.recipe.model.path or "random weights"
    typer.echo(f"{recipe}: valid; it would open the model {opens} and the data {checked.recipe.data.dump()['use']}")
