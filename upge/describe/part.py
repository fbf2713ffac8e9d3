"""A part described for people: its line, formula, parameters, what it reads, and which recipes use it."""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from upge.describe.formula import formula, written
from upge.field_names import NamesField, naming_parameters
from upge.part import ESTIMATING, Mask, Part, StrictModel
from upge.recipe.catalog import shelved
from upge.recipe.faults import RecipeError
from upge.recipe.resolve import load
from upge.schedule import Schedule, Within


@dataclass(frozen=True)
class Parameter:
    """A parameter: its type in words, its bounds, its default ("required", "follows …" or the value), its docstring."""

    name: str
    kind: str
    bounds: str
    default: str
    about: str


@dataclass(frozen=True)
class Description:
    """The description of a part's class.

    Attributes:
        line: its docstring's first line. formula: the indented block. text: the rest of the docstring.
        traits: what it reads, whether it is a trust region, how much it must see at once.
    """

    line: str
    formula: tuple[str, ...]
    text: str
    parameters: tuple[Parameter, ...]
    traits: tuple[str, ...]
    file: str


def described(kind: type[Part]) -> Description:
    """The description of a part's class, from its docstring and fields."""
    line, _, rest = inspect.cleandoc(kind.__doc__ or "").partition("\n")
    text = re.sub(r"^(?:    .+\n?)+\n*", "", rest.lstrip("\n"), count=1, flags=re.MULTILINE)
    return Description(
        line, tuple(formula(kind)), text.strip(), tuple(_parameters(kind)), tuple(_traits(kind)), _file(kind)
    )


def used_by(kind: type[Part]) -> list[str]:
    """The installed recipes that use this part; those with a fault are passed over."""
    return [entry.name for entry in shelved() if kind in _parts_of(entry.path)]


def _parts_of(path: Path) -> set[type[Part]]:
    try:
        return {type(part) for part in load(path).parts().values()}
    except RecipeError:
        return set()


def _parameters(kind: type[Part]) -> Iterator[Parameter]:
    for name, field in kind.fields().items():
        yield Parameter(name, kind_of_field(field), bounds_of(field), default_of(field), field.description or "")


def _traits(kind: type[Part]) -> Iterator[str]:
    if issubclass(kind, ESTIMATING):
        yield f"reads {', '.join(_reads(kind)) or 'no field of the batch'}"
        yield f"scope: {kind.scope}"
    if issubclass(kind, Mask):
        yield "a trust region: 1 where the ratio is 1" if kind.trust_region else "a weight, and no trust region"


def _reads(kind: type[Part]) -> Iterator[str]:
    """The fields that a part reads with its defaults, and those that its parameters must name."""
    try:
        yield from sorted(kind.model_construct().reads())
    except AttributeError:  # it asks a parameter that has no default
        yield from sorted(kind.needs)
    yield from (f"the field `{name}`" for name in naming_parameters(kind))


def _file(kind: type[Part]) -> str:
    source = Path(inspect.getsourcefile(kind) or "?")
    line = inspect.getsourcelines(kind)[1]
    near = source.relative_to(Path.cwd()) if source.is_relative_to(Path.cwd()) else source
    return f"{near}:{line}"


def kind_of(annotation: Any) -> str:
    """A type in words: `number`, `whole number`, `a | b`, `list of text`, …"""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if mark := next((each for each in arguments[1:] if isinstance(each, NamesField)), None):
            return f"name of a field per {mark.per}" if mark.per else "name of a field"
        bounds = (bounds_of(constraint) for constraint in arguments[1:] if isinstance(constraint, FieldInfo | Within))
        return " ".join([kind_of(arguments[0]), *filter(None, bounds)])
    if origin is Literal:
        return " | ".join(map(str, arguments))
    if origin in (Union, types.UnionType):
        kinds = (kind_of(choice) for choice in arguments if choice is not type(None))
        return " or ".join(dict.fromkeys(kinds))
    if origin is tuple:
        return f"list of {kind_of(arguments[0])}"
    if origin is dict:
        return f"map of {kind_of(arguments[0])} to {kind_of(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, Schedule):
        return "schedule"
    if isinstance(annotation, type) and issubclass(annotation, StrictModel):
        return "map"
    words = {float: "number", int: "whole number", str: "text", bool: "true | false", Any: "anything"}
    return words.get(annotation, str(annotation))


def kind_of_field(field: FieldInfo) -> str:
    """A parameter's type in words, without its bounds."""
    naming = [each for each in field.metadata if isinstance(each, NamesField)]
    return kind_of(Annotated[field.annotation, *naming] if naming else field.annotation)


def bounds_of(field: FieldInfo | Within) -> str:
    """`≥ 0, ≤ 1`, from a field's constraints."""
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    metadata = field.metadata if isinstance(field, FieldInfo) else [field]
    return ", ".join(f"{signs[name]} {bound:g}" for name, bound in _constraints(metadata) if name in signs)


def _constraints(metadata: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    for constraint in metadata:
        if isinstance(constraint, Within):
            yield ("gt" if constraint.open_below else "ge"), constraint.low
            if constraint.high < math.inf:
                yield "le", constraint.high
        for name in ("gt", "ge", "lt", "le"):
            if (bound := getattr(constraint, name, None)) is not None:
                yield name, bound


def default_of(field: FieldInfo) -> str:
    """A field's default for people: `required`, what it follows, or the value."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "follows" in extra:
        return f"follows {extra['follows']}"
    return "required" if field.is_required() else written(field.get_default(call_default_factory=True))
