"""The strict Pydantic base of parts and of a recipe's blocks."""

from __future__ import annotations

import functools
import json
from types import UnionType
from typing import Any, Literal, LiteralString, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError, PydanticKnownError, ValidationError


class StrictModel(BaseModel):
    """A frozen, strict model: unknown keys and silent conversions ("0.2" for 0.2) are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
        # A parameter that Python reserves the word for (lambda) has it as its alias, in YAML and in what is dumped.
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
    )

    def __hash__(self) -> int:
        # Equal models must hash alike: whatever the order of a map, and 0.0 like −0.0.
        return hash((type(self), json.dumps(self.model_dump(mode="json"), sort_keys=True).replace("-0.0", "0.0")))

    @field_validator("*", mode="before")
    @classmethod
    def of_its_literals_types(cls, value: Any, info: ValidationInfo) -> Any:
        """Pydantic compares literals by ==, so that `true` and 1.0 would do for 1."""
        literals = _whole_literals(cls).get(str(info.field_name), ())
        if literals and isinstance(value, bool | float):
            raise PydanticKnownError("literal_error", {"expected": " or ".join(map(repr, literals))})
        return value

    def refuse(self, at: tuple[str | int, ...], message: str, *, key: bool = False) -> None:
        """Raise a validation error that points at the path `at` below this block: at its value, or at its key."""
        self._raise("refused_key" if key else "refused", at, message)

    def lack(self, message: str) -> None:
        """Raise a validation error at this block's key: it lacks something. An abstract recipe may lack it."""
        self._raise("lacking", (), message)

    def _raise(self, kind: LiteralString, at: tuple[str | int, ...], message: str) -> None:
        fault = PydanticCustomError(kind, "{message}", {"message": message})
        raise ValidationError.from_exception_data(
            type(self).__name__, [InitErrorDetails(type=fault, loc=at, input=None)]
        )


@functools.cache
def _whole_literals(kind: type[StrictModel]) -> dict[str, tuple[int, ...]]:
    """The fields that may be certain integers and no other number, and these integers."""
    alternatives = {name: _alternatives(field.annotation) for name, field in kind.model_fields.items()}
    whole = {name: tuple(literal for literal in its if type(literal) is int) for name, its in alternatives.items()}
    return {name: its for name, its in whole.items() if its and not {bool, float}.intersection(alternatives[name])}


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    """The types of a union, and the values of its literals."""
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return tuple(literal for member in get_args(annotation) for literal in _alternatives(member))
    return (annotation,)
