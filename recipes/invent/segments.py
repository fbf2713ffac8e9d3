"""An advantage for each segment of a response."""

from __future__ import annotations

import torch
from torch import Tensor

import upge


class Segments(upge.Advantage):
    """One advantage up to the first mark of a trajectory, its token included, and another after it.

        Â_t = first_t where no token before t is marked, else then_t

    Shapes: marks (T,), 0 or 1 → (T,), in units of the advantages. Source: an invention.
    """

    scope = "group"

    marks: upge.TokenField
    """The field that is not 0 at marked tokens."""
    first: upge.AnAdvantage
    """The advantage up to the first mark."""
    then: upge.AnAdvantage
    """The advantage after it."""

    def reads(self) -> frozenset[str]:
        return super().reads() | self.first.reads() | self.then.reads()

    def __call__(self, b: upge.View) -> Tensor:
        marks = (b.field(self.marks) != 0).to(b.dtype)
        before = b.to_tokens(b.per_trajectory(marks)) - b.to_go(marks)
        return torch.where(before > 0.5, self.then(b), self.first(b))
