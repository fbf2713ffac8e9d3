"""Numbers that may move with the step: `0.1`, or `{start: 0.9, end: 0.05, steps: 200, shape: linear}`."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag
from pydantic_core import PydanticCustomError

from upge.parts import Settings


class Schedule(Settings):
    """A number that goes from `start` to `end` in `steps` rollout batches and then stays there.

    value(step) = start + (end − start)·f(step/steps), f linear or (1 − cos πx)/2
    """

    start: float
    """The value at step 0."""
    end: float
    """The value from step `steps` on."""
    steps: int = Field(ge=1)
    """How many rollout batches the way takes."""
    shape: Literal["linear", "cosine"] = "linear"
    """The way's shape."""

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


def Within(low: float, high: float = math.inf, *, open_below: bool = False) -> AfterValidator:
    """A Pydantic constraint: every value that the number or schedule takes lies in [low, high], or in (low, high]."""

    def check(number: float | Schedule) -> float | Schedule:
        least, greatest = bounds(number)
        if least < low or greatest > high or (open_below and least == low):
            bracket = "(" if open_below else "["
            message = (
                f"should lie in {bracket}{low:g}, {high:g}]"
                if high < math.inf
                else f"should be {'>' if open_below else '≥'} {low:g}"
            )
            raise PydanticCustomError("within", "{message}", {"message": message})
        return number

    return AfterValidator(check)


def at(number: float | Schedule, step: int) -> float:
    """The value of a number or schedule at rollout batch `step`."""
    return number.at(step) if isinstance(number, Schedule) else number


def bounds(number: float | Schedule) -> tuple[float, float]:
    """The least and the greatest value that a number or schedule takes."""
    if isinstance(number, Schedule):
        return min(number.start, number.end), max(number.start, number.end)
    return number, number
