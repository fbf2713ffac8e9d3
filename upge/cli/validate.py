"""`upge validate`: every fault of a recipe at once, with its place; no model is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import typer

from upge.cli.app import app
from upge.cli.arguments import AllowCode, Overrides, RecipePath, uncollected

if TYPE_CHECKING:
    from upge.part import Part
    from upge.recipe.schema import Recipe


@app.command()
def validate(recipe: RecipePath, overrides: Overrides = None, allow_code: AllowCode = False) -> None:
    """Check a recipe without a run: call its estimator's parts once, and list what it would open, run and write."""
    with uncollected():
        from upge.files import shown
        from upge.recipe.resolve import check
        from upge.recipe.trials import rehearse

        checked = check(recipe, overrides or (), allow_code=allow_code)
    if checked.recipe is None:
        typer.echo(f"{recipe}: an abstract recipe, without errors so far")
        return
    rehearse(checked.recipe, checked.composed)
    typer.echo(f"{recipe}: valid")
    for what, which in _touched(checked.recipe):
        typer.echo(f"  {what:<9} {shown(which)}")


def _touched(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Whatever a run would open, run or write: (kind, name)."""
    from upge.describe.table import brief

    needs, model = recipe.estimator.needs(), recipe.model
    yield "model", model.path or f"random weights, {(model.config or {}).get('model_type', '?')}"
    if model.tokenizer is not None:
        yield "tokenizer", model.tokenizer
    if "reference_logp" in needs and recipe.reference.path is not None:
        yield "reference", recipe.reference.path
    if "value" in needs and recipe.critic is not None and recipe.critic.path is not None:
        yield "critic", recipe.critic.path
    yield from (("field", f"{name}: {brief(part)}") for name, part in recipe.fields_read().items())
    yield from (
        ("data", brief(recipe.data)),
        ("reward", brief(recipe.reward)),
        ("engine", brief(recipe.rollout.engine)),
    )
    if (engine := recipe.engine_of_its_own()) is not None:
        yield "measured by", brief(engine)
    named = dict.fromkeys(name for part in recipe.parts().values() for name in _code(part))
    yield from (("code", name) for name in named)
    if recipe.log.trackers:
        yield "trackers", ", ".join(recipe.log.trackers)
    yield "folder", str(recipe.log.path(recipe.name))


def _code(part: Part) -> Iterator[str]:
    """The code that a part is, or that its parameters name."""
    from upge.code import named_by
    from upge.recipe.qualified_names import names_file

    use = str(part.dump()["use"])
    yield from [use] if names_file(use) else []
    yield from named_by(part)
