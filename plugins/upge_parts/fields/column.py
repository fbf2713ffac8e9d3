"""A number of the data's, for each prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isinf, nan
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from upge import BatchField, Context, InputError, Problem, Trajectory

if TYPE_CHECKING:
    from torch import Tensor


class ColumnField(BatchField):
    """A number that the data have for each problem, such as its level or a weight.

        field_q = the number in the column

        fields:
          level: {use: column, column: level}

    The column is one of `Problem.columns`; every data source says which those are. A truth value counts as 1 or 0. It
    is NaN where the row has no such column, or null in it; the metric `fields/<name>/missing` counts these. Anything
    but a number is an error that names the row.
    Shapes: (G,), per prompt. Units: those of the column. Source: none; it is a means for other methods.
    """

    per: ClassVar[Literal["prompt"]] = "prompt"

    column: str = Field(min_length=1, examples=["level"])
    """The column's name in the data."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Numbers]:
        yield Numbers(self.column, context.place)


@dataclass(frozen=True)
class Numbers:
    """A column, and the field's place in the recipe."""

    column: str
    place: str

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """(N,) each problem's number, in float64, a row a trajectory. Raises InputError for what isn't one."""
        import torch

        del step
        return torch.tensor([self._number(each.problem) for each in trajectories], dtype=torch.float64)

    def _number(self, problem: Problem) -> float:
        value = problem.columns.get(self.column)
        if value is None:
            return nan
        try:
            number = float(value) if isinstance(value, int | float) else inf
        except OverflowError:  # an integer beyond all floats
            number = inf
        if isinf(number):
            wrong = f"its column '{self.column}' is {value!r:.60}"
            raise InputError(f"{self.place}: {problem.named}: {wrong}; the field takes a finite number")
        return number
