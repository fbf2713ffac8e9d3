"""Numbers that may move with the step: `0.1`, or `{start: 0.9, end: 0.05, steps: 200, shape: linear}`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import InitErrorDetails, PydanticCustomError, ValidationError, core_schema

from upge.strict_model import StrictModel


class Schedule(StrictModel):
    """A number that changes from `start` to `end` in `steps` rollout batches, and then stays at `end`.

    value(step) = start + (end − start)·f(step/steps), f linear or (1 − cos πx)/2
    """

    start: float
    """The value at step 0."""
    end: float
    """The value from step `steps` on."""
    steps: int = Field(ge=1)
    """The number of rollout batches from `start` to `end`."""
    shape: Literal["linear", "cosine"] = "linear"
    """The curve's shape."""

    def at(self, step: int) -> float:
        """The value at rollout batch `step`."""
        way = min(step / self.steps, 1.0)
        if self.shape == "cosine":
            way = (1 - math.cos(math.pi * way)) / 2
        return self.start + (self.end - self.start) * way


def _kind(value: Any) -> str:
    return "[schedule]" if isinstance(value, dict | Schedule) else "[number]"


Number = Annotated[Annotated[float, Tag("[number]")] | Annotated[Schedule, Tag("[schedule]")], Discriminator(_kind)]
"""A float or a `Schedule`; the field type for whatever may move with the step."""


@dataclass(frozen=True)
class Within:
    """A Pydantic constraint: every value that the number or schedule takes lies in [low, high], or in (low, high]."""

    low: float
    high: float = math.inf
    open_below: bool = field(default=False, kw_only=True)

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        lowest = {"exclusiveMinimum" if self.open_below else "minimum": self.low}
        return handler(schema) | lowest | ({"maximum": self.high} if self.high < math.inf else {})

    def _checked(self, number: float | Schedule) -> float | Schedule:
        ends = {"start": number.start, "end": number.end} if isinstance(number, Schedule) else {"": number}
        for end, value in ends.items():
            if value < self.low or value > self.high or (self.open_below and value == self.low):
                fault = PydanticCustomError("within", "{message}", {"message": self._message()})
                detail = InitErrorDetails(type=fault, loc=(end,) if end else (), input=value)
                raise ValidationError.from_exception_data("number", [detail])
        return number

    def _message(self) -> str:
        if self.high < math.inf:
            return f"should lie in {'(' if self.open_below else '['}{self.low:g}, {self.high:g}]"
        return f"should be {'>' if self.open_below else '≥'} {self.low:g}"


def at(number: float | Schedule, step: int) -> float:
    """The value of a number or schedule at rollout batch `step`."""
    return number.at(step) if isinstance(number, Schedule) else number


def bounds(number: float | Schedule) -> tuple[float, float]:
    """The least and the greatest value that a number or schedule takes."""
    if isinstance(number, Schedule):
        return min(number.start, number.end), max(number.start, number.end)
    return number, number
