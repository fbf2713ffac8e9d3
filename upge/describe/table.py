"""Recipes as a table: a row a term, a column a factor, as the unified view of post-training tabulates methods."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from upge.describe.formula import written
from upge.estimator.term import Term
from upge.part import Part, Weight
from upge.recipe.qualified_names import names_file
from upge.recipe.schema import Recipe
from upge.schedule import Schedule

HEAD = ("recipe", "term", "tokens of", "mask", "π_ref", "Â", "n", "s, shaping, weight")


def table(recipes: Mapping[str, Recipe]) -> str:
    """A Markdown table of these recipes; the keys are the files that their names link to."""
    rows = [HEAD, tuple("---" for _ in HEAD)]
    for file, recipe in recipes.items():
        rows += list(_rows(file, recipe))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def _rows(file: str, recipe: Recipe) -> Iterator[tuple[str, ...]]:
    label = f"[`{recipe.name}`]({file}) {recipe.about}"
    for name, term in recipe.estimator.terms.items():
        masks = " · ".join(_cell(mask) for mask in term.mask) or "1"
        factors = (masks, _cell(term.denominator), _cell(term.advantage), _reduction(term))
        source = ", ".join((term.source, *map(_cell, term.select)))
        yield (label, f"`{name}`", source, *factors, "; ".join(_more(name, term, recipe)))
        label = ""


def brief(part: Part) -> str:
    """A part in a word: its name, with the parameters that differ from their defaults."""
    dumped = part.dump()
    fields = {field.alias or name: field for name, field in type(part).model_fields.items()}
    parameters = {k: v for k, v in dumped.items() if k != "use" and not _usual(fields[k], v)}
    settings = ", ".join(f"{key}={written(value)}" for key, value in parameters.items())
    return f"{dumped['use']}({settings})" if settings else str(dumped["use"])


def _cell(part: Part) -> str:
    """A part as a table has it: of one in a file the file's name alone, since the folder is this machine's."""
    use = str(part.dump()["use"])
    return brief(part).replace(use, Path(use).name, 1) if names_file(use) else brief(part)


def _usual(field: Any, value: object) -> bool:
    """Whether a parameter can be omitted: it is the default, or follows another value of the recipe."""
    extra = field.json_schema_extra
    return field.default == value or (isinstance(extra, dict) and "follows" in extra)


def _reduction(term: Term) -> str:
    together = f", counted with `{term.count_with}`" if term.count_with else ""
    return _cell(term.reduction) + together


def _more(name: str, term: Term, recipe: Recipe) -> Iterator[str]:
    """The remaining cell of a term: its switches, shapings, weight and direction."""
    yield from (f"s: {_cell(switch)}" for switch in recipe.estimator.switch if name in switch.terms())
    if "reward" in term.advantage.reads():
        yield from (f"R + {_cell(shaping)}" for shaping in recipe.estimator.shaping)
    if isinstance(term.weight, Weight):
        yield f"× {_cell(term.weight)}"
    elif term.weight != 1:
        weight = term.weight.model_dump() if isinstance(term.weight, Schedule) else term.weight
        yield f"× {written(weight)}"
    if term.direction == "entropy":
        yield "pushes on H"
