"""Trajectories by their score."""

from __future__ import annotations

from torch import Tensor

from upge import Selection, View
from upge_parts.groups import RewardName


class Correct(Selection):
    """The trajectories whose score is above a bound: the right ones, with a verifier of 0 and 1.

        select_i = [R_i > above]

    R is the score without shaping, or the number in the field `of`. A number that isn't known is not above.
    Shapes: R (N,) → (N,) bool. Source: rejection sampling, as in arXiv 2308.01825.
    """

    scope = "trajectory"

    above: float = 0.0
    """The score that a selected trajectory exceeds."""
    of: RewardName = "reward"
    """The field that holds the scores."""

    def __call__(self, b: View) -> Tensor:
        return (b.score if self.of == "reward" else b.field(self.of)) > self.above
