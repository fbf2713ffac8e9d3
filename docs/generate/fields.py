"""The fields of a settings model as a table: key, type with bounds, default, docstring."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic.fields import FieldInfo

from generate.markdown import prose, table
from upge.describe.part import bounds_of, kind_of_field
from upge.part import Part, StrictModel
from upge.schedule import Schedule

HEAD = ("key", "type", "default", "meaning")


def fields_of(kind: type[StrictModel]) -> dict[str, FieldInfo]:
    """YAML keys and their fields, the class's own before those that it inherits, the nearest base's first."""
    declared = [inspect.get_annotations(base) for base in kind.__mro__]
    depth = {name: next(i for i, names in enumerate(declared) if name in names) for name in kind.model_fields}
    ordered = sorted(kind.model_fields.items(), key=lambda item: depth[item[0]])
    return {field.alias or name: field for name, field in ordered}


def fields_table(fields: Mapping[str, FieldInfo], types: Mapping[str, str] | None = None) -> str:
    """The table; `types` has other words for the types of some keys."""
    rows = ((key, (types or {}).get(key) or in_words(field), field) for key, field in fields.items())
    return table(HEAD, ((f"`{key}`", type_, default_of(field), meaning_of(field)) for key, type_, field in rows))


def in_words(field: FieldInfo) -> str:
    """A field's type and bounds."""
    return f"{kind_of_field(field)} {bounds_of(field)}".strip()


def default_of(field: FieldInfo) -> str:
    """The default as YAML writes it, `required`, or where the value comes from if none is given."""
    extra = field.json_schema_extra
    if isinstance(extra, dict) and "follows" in extra:
        return f"that of `{extra['follows']}`"
    if field.is_required():
        return "required"
    default = field.get_default(call_default_factory=True)
    if isinstance(default, StrictModel):
        return "all defaults"
    bare = isinstance(default, str) and default != ""
    return f"`{default if bare else json.dumps(default, ensure_ascii=False)}`"


def meaning_of(field: FieldInfo) -> str:
    """A field's docstring; for a block without one, the first line of the block's."""
    described = field.description or next((kind.__doc__ for kind in models_in(field.annotation)), None) or ""
    return prose(described if field.description else described.partition("\n")[0])


def models_in(annotation: Any) -> Iterator[type[StrictModel]]:
    """The settings models, blocks and parts, that stand in a type; schedules count as numbers."""
    if isinstance(annotation, type) and issubclass(annotation, StrictModel) and not issubclass(annotation, Schedule):
        yield annotation
    for argument in get_args(annotation):
        yield from models_in(argument)


def part_in(annotation: Any) -> type[Part] | None:
    """The slot's base that stands in a type."""
    return next((kind for kind in models_in(annotation) if issubclass(kind, Part)), None)
