"""`upge explain`: a recipe as the paper's formula, with the parts filled in."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from upge.cli.app import app
from upge.cli.arguments import AllowCode, Overrides, RecipePath

if TYPE_CHECKING:
    from upge.recipe.schema import Recipe

Form = Annotated[str, typer.Option("--format", help="text, markdown, or latex (for a paper).")]


@app.command()
def explain(
    recipe: RecipePath, overrides: Overrides = None, form: Form = "text", allow_code: AllowCode = False
) -> None:
    """Print a recipe's gradient as a formula: its factors, origins of settings, and equal recipes."""
    from upge.describe.recipe import FORMATS, explained, rendered
    from upge.files import shown
    from upge.recipe.resolve import load_composed

    if form not in FORMATS:
        raise typer.BadParameter(f"'{form}' is none of {', '.join(FORMATS)}", param_hint="--format")
    whole, composed = load_composed(recipe, overrides or (), allow_code=allow_code)
    alike, tried = _alike(whole)
    typer.echo(shown(rendered(replace(explained(whole, composed), alike=alike, tried=tried), form)))


def _alike(recipe: Recipe) -> tuple[tuple[str, ...], str]:
    """Which installed recipes have the same gradient and when, and on what that was tried."""
    from upge.describe.similarity import Subject, alike_subjects
    from upge.describe.synthetic import longest_of, tried_steps, turns, words
    from upge.estimator.part_errors import PartError
    from upge.recipe.catalog import shelved
    from upge.recipe.faults import RecipeError
    from upge.recipe.resolve import load

    others = {}
    for entry in shelved():
        try:
            others[entry.name] = load(entry.path).estimator
        except RecipeError:  # another's fault is no reason not to explain this one
            continue
    others = {name: estimator for name, estimator in others.items() if name != recipe.name}
    moving = {turn for estimator in (recipe.estimator, *others.values()) for turn in turns(estimator)}
    steps, longest = tried_steps(max(recipe.train.steps - 1, 0), sorted(moving)), longest_of(recipe)
    ours = Subject(recipe.estimator, steps, longest)
    tried = words(longest, steps)
    try:
        likenesses = alike_subjects(ours, {name: Subject(other, steps, longest) for name, other in others.items()})
        silent = ours.silent
    except PartError as error:
        return (), f"with which recipes it has its gradient in common could not be tried: {error}"
    if silent:
        never = f"{' and '.join(silent)} made no difference on any of them"
        return (), f"this comparison can't show whether another recipe has the same gradient: it used {tried}: {never}"
    return tuple(map(str, likenesses)), f"tried on {tried}"
