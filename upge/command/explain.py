"""`upge explain`: a recipe as the paper's formula, with the parts filled in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from upge.command import app
from upge.command.arguments import AllowCode, Overrides, RecipePath

if TYPE_CHECKING:
    from upge.recipe import Recipe

Form = Annotated[str, typer.Option("--format", help="text, markdown, or latex (for a paper).")]


@app.command()
def explain(
    recipe: RecipePath, overrides: Overrides = None, form: Form = "text", allow_code: AllowCode = False
) -> None:
    """Print a recipe's gradient as a formula: its factors, where their settings come from, what it reduces to."""
    from upge.explaining.recipes import explained
    from upge.explaining.rendering import FORMATS, rendered
    from upge.files import shown
    from upge.recipe import load_composed

    if form not in FORMATS:
        raise typer.BadParameter(f"'{form}' is none of {', '.join(FORMATS)}", param_hint="--format")
    whole, composed = load_composed(recipe, overrides or (), allow_code=allow_code)
    typer.echo(shown(rendered(replace(explained(whole, composed), alike=tuple(_alike(whole))), form)))


def _alike(recipe: Recipe) -> list[str]:
    """Which installed recipes have the same gradient and when, at the first step and at the last where they differ."""
    from upge.explaining.likeness import alike
    from upge.recipe import RecipeError, load
    from upge.recipe.finding import shelved

    others = {}
    for each in shelved():
        try:
            others[each.name] = load(each.path).estimator
        except RecipeError:  # another's fault is no reason not to explain this one
            continue
    others = {name: estimator for name, estimator in others.items() if name != recipe.name}
    first, last = ([str(each) for each in alike(recipe.estimator, others, step=step)] for step in _ends(recipe))
    always = [each for each in first if each in last]
    at_first = [f"{each}, at the first step" for each in first if each not in last]
    return always + at_first + [f"{each}, at the last step" for each in last if each not in first]


def _ends(recipe: Recipe) -> tuple[int, int]:
    return 0, max(recipe.train.steps - 1, 0)
