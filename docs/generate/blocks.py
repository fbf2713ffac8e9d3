"""docs/reference/recipe.md: every block of a recipe with its fields."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args, get_origin

from pydantic.fields import FieldInfo

from generate.fields import fields_of, fields_table, in_words, models_in, part_in
from generate.markdown import page, prose
from upge.part import Part, StrictModel
from upge.recipe import Recipe
from upge.schedule import Schedule

INTRODUCTION = """\
# The blocks of a recipe

This page lists every key of a recipe, except `extends` and the other words of
[the language](../recipes.md#the-language). A number that may be a schedule is a number or [a schedule](#schedule).

`python docs/tables.py` makes this page from the fields' docstrings in
[`upge/recipe/schema.py`](../../upge/recipe/schema.py) and
[`upge/estimator/estimator.py`](../../upge/estimator/estimator.py).
"""


def recipe_page() -> str:
    """The page."""
    return page(INTRODUCTION, *_block("", Recipe), *_block("schedule", Schedule))


def _block(place: str, kind: type[StrictModel]) -> Iterator[str]:
    """The section of a block, and those of the blocks inside it."""
    fields = fields_of(kind)
    yield f"## {f'`{place}`' if place else 'The top level'}"
    yield from (prose(kind.__doc__), fields_table(fields, dict(_types(place, fields))))
    for key, field in fields.items():
        for inner in _blocks_in(field):
            yield from _block(_place(place, key, field), inner)


def _types(place: str, fields: dict[str, FieldInfo]) -> Iterator[tuple[str, str]]:
    """What the table says of the fields that hold parts or blocks."""
    for key, field in fields.items():
        part, inner = part_in(field.annotation), list(_blocks_in(field))
        if part is not None:
            several = ", or a list of them" if get_origin(field.annotation) is tuple else ""
            yield key, f"[a part]({part.slot}.md){several}"
        elif inner:
            name = _place(place, key, field)
            yield key, f"[{'blocks by name' if _is_map(field) else 'a block'}](#{_anchor(name)})"
        elif get_args(field.annotation) == (False,):  # a recipe that says true is a fragment, and never gets here
            yield key, "true | false"
        else:
            yield key, in_words(field)


def _blocks_in(field: FieldInfo) -> Iterator[type[StrictModel]]:
    return (kind for kind in models_in(field.annotation) if not issubclass(kind, Part))


def _is_map(field: FieldInfo) -> bool:
    return get_origin(field.annotation) is dict


def _place(place: str, key: str, field: FieldInfo) -> str:
    return ".".join(filter(None, (place, key, "<name>" if _is_map(field) else "")))


def _anchor(place: str) -> str:
    """The anchor of a heading, as code hosts make them."""
    return "".join(letter for letter in place if letter.isalnum() or letter in "_-")
