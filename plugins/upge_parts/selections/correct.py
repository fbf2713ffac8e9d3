"""Trajectories by their score."""

from __future__ import annotations

from torch import Tensor

from upge import Selection, View


class Correct(Selection):
    """The trajectories whose score is above a bound: the right ones, with a verifier of 0 and 1.

        select_i = [R_i > above]

    R is the score without shaping.
    Shapes: score (N,) → (N,) bool. Source: rejection sampling, as in arXiv 2308.01825.
    """

    needs = frozenset({"reward"})
    scope = "trajectory"

    above: float = 0.0
    """The score that a selected trajectory exceeds."""

    def __call__(self, b: View) -> Tensor:
        return b.score > self.above
