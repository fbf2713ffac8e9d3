"""Parameters of parts that name fields of the batch: which these are, and what they name."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel

from upge.part_checks import Per


@dataclass(frozen=True)
class NamesField:
    """Marks the type of a parameter that names a field; of any kind, or of numbers per token, trajectory or prompt."""

    per: Per | None = None


FieldName = Annotated[str, NamesField()]
"""The name of a field: one of the recipe's `fields`, or one of the machine's (`reward`, `entropy`, …)."""
TokenField = Annotated[str, NamesField("token")]
"""The name of a field with numbers per token."""
TrajectoryField = Annotated[str, NamesField("trajectory")]
"""The name of a field with numbers per trajectory."""
PromptField = Annotated[str, NamesField("prompt")]
"""The name of a field with numbers per prompt."""


@dataclass(frozen=True)
class NamedField:
    """A field that a part's parameter names.

    Attributes: path: of the name below the part. per: the kind that the parameter takes; None takes any.
    """

    path: tuple[str | int, ...]
    per: Per | None
    name: str


def named_fields(part: BaseModel) -> Iterator[NamedField]:
    """The fields that a part's parameters name, alone or in a tuple."""
    for name, annotation in _naming(type(part)).items():
        key = type(part).model_fields[name].alias or name
        # A part that is made of its defaults alone, to be described, has no value for what is required.
        yield from _within(annotation, getattr(part, name, None), (key,))


def naming_parameters(kind: type[BaseModel]) -> list[str]:
    """The parameters of a part's class that must name a field."""
    fields = kind.model_fields
    return [fields[name].alias or name for name in _naming(kind) if fields[name].is_required()]


@functools.cache
def _naming(kind: type[BaseModel]) -> dict[str, Any]:
    """The parameters that may name fields, with their types."""
    types = {
        name: Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        for name, field in kind.model_fields.items()
    }
    return {name: annotation for name, annotation in types.items() if _mentions(annotation)}


def _mentions(annotation: Any) -> bool:
    if _mark(annotation) is not None:
        return True
    return any(map(_mentions, () if get_origin(annotation) is Literal else get_args(annotation)))


def _mark(annotation: Any) -> NamesField | None:
    marks = getattr(annotation, "__metadata__", ())
    return next((mark for mark in marks if isinstance(mark, NamesField)), None)


def _within(annotation: Any, value: Any, path: tuple[str | int, ...]) -> Iterator[NamedField]:
    if isinstance(value, tuple):
        for index, element in enumerate(value):
            yield from _within(annotation, element, (*path, index))
    elif isinstance(value, str) and value not in _literals(annotation) and (mark := _first_mark(annotation)):
        yield NamedField(path, mark.per, value)


def _literals(annotation: Any) -> tuple[Any, ...]:
    """The values of the literals in a type; these are no names of fields."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return tuple(value for inner in get_args(annotation) for value in _literals(inner))


def _first_mark(annotation: Any) -> NamesField | None:
    mark = _mark(annotation)
    inner = () if get_origin(annotation) is Literal else get_args(annotation)
    return mark or next((found for found in map(_first_mark, inner) if found is not None), None)
