"""Schedules of a run that goes on for longer than it was to: which have ended, and may be given a new way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from upge.recipe import Recipe
from upge.schedule import Schedule

KEYS = frozenset(Schedule.model_fields)
FOLLOWED = "train.steps"


def ended(recipe: Mapping[str, Any], done: int) -> dict[str, Schedule]:
    """The schedules of a resolved recipe, by dotted place, that are at their end once `done` steps are done."""
    return {place: each for place, each in _schedules(recipe, "") if each.steps <= done}


def _schedules(value: Any, place: str) -> Iterator[tuple[str, Schedule]]:
    if isinstance(value, Mapping) and value.keys() == KEYS:
        yield place, Schedule.model_validate(value)
        return
    within = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, each in within:
        yield from _schedules(each, f"{place}.{key}" if place else str(key))


def following(recipe: Recipe) -> list[str]:
    """The parameters of parts that are `train.steps` unless they are given, by dotted place."""
    return [
        f"{place}.{name}"
        for place, part in recipe.parts().items()
        for name, field in part.fields().items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("follows") == FOLLOWED
    ]
