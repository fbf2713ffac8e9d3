"""`upge diff`: two recipes part by part, and how far their gradients are apart."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upge.cli.app import app
from upge.cli.arguments import AllowCode
from upge.tables import folding

if TYPE_CHECKING:
    from upge.recipe.compose import Composed
    from upge.recipe.schema import Recipe

One = Annotated[str, typer.Argument(metavar="A", help="A recipe file, or the name of one that is installed.")]
Other = Annotated[str, typer.Argument(metavar="B")]
Everything = Annotated[bool, typer.Option("--all", help="Include the blocks beside the estimator.")]


@app.command()
def diff(a: One, b: Other, everything: Everything = False, allow_code: AllowCode = False) -> None:
    """Compare two recipes: the parts that differ, and norms and cosine of their gradients on synthetic batches."""
    from rich.console import Console

    from upge.files import shown
    from upge.recipe.resolve import load_composed

    loaded = [load_composed(path, allow_code=allow_code) for path in (a, b)]
    recipes = [recipe for recipe, _ in loaded]
    table = folding()
    for column in ("", recipes[0].name, recipes[1].name):
        table.add_column(column)
    for row in _differences(*(_settings(recipe, everything) for recipe in recipes)):
        table.add_row(*map(shown, row))
    console = Console(highlight=False, markup=False)
    console.print(table if table.row_count else "no part differs")
    for line in _distances(*loaded):
        console.print(shown(line), soft_wrap=True)


def _distances(one: tuple[Recipe, Composed], other: tuple[Recipe, Composed]) -> Iterator[str]:
    """How far the two gradients are apart, on what that was tried, and which parts made no difference there."""
    from upge.cli.arguments import located
    from upge.describe.similarity import Subject, apart_subjects
    from upge.describe.synthetic import longest_of, tried_steps, turns, words

    (a, _), (b, _) = one, other
    last = max(recipe.train.steps - 1 for recipe in (a, b))
    moving = sorted({turn for recipe in (a, b) for turn in turns(recipe.estimator)})
    steps, longest = tried_steps(max(last, 0), moving), longest_of(a, b)
    subjects = [
        Subject(side.estimator, steps, longest, functools.partial(located, tree)) for side, tree in (one, other)
    ]
    for distance in apart_subjects(*subjects):
        norms = " and ".join(f"{norm:.4g}" for norm in distance.norms)
        yield f"on a synthetic batch, {distance.batch}: norms {norms}, cosine {distance.cosine:.6f}"
    yield f"tried on {words(longest, steps)}"
    for recipe, subject in zip((a, b), subjects, strict=True):
        if subject.silent:
            yield f"{recipe.name}: {' and '.join(subject.silent)} made no difference on any of them"


def _settings(recipe: Recipe, everything: bool) -> dict[str, str]:
    """Every field, part and setting of the terms by its place; with `everything` the settings of other blocks too."""
    from upge.describe.table import brief

    settings = {place.removeprefix("terms."): brief(part) for place, part in recipe.estimator.parts().items()}
    for name, term in recipe.estimator.terms.items():
        fields = term.model_dump(include={"source", "weight", "direction", "count_with"}, exclude_defaults=True)
        settings |= dict(_flat(fields, name))
    settings |= {f"fields.{name}": brief(part) for name, part in recipe.fields.items()}
    if everything:
        settings |= dict(_flat(recipe.model_dump(exclude={"name", "about", "estimator", "fields"}), ""))
    return settings


def _flat(value: Any, path: str) -> Iterator[tuple[str, str]]:
    from upge.describe.formula import written

    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}".lstrip("."))
    else:
        yield path, written(value)


def _differences(ours: Mapping[str, str], theirs: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for place in dict.fromkeys((*ours, *theirs)):
        pair = (ours.get(place, ""), theirs.get(place, ""))
        if pair[0] != pair[1]:
            yield (place, *pair)
