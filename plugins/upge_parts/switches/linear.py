"""A soft gate."""

from __future__ import annotations

from pydantic import model_validator
from torch import Tensor

from upge import Switch, View
from upge_parts.groups import RewardName, success
from upge_parts.switches.naming import two_terms


class Linear(Switch):
    """HPT without a threshold: for each prompt, reinforcement has the weight P (its success rate), imitation 1 − P.

        s_success(q) = P(q) = mean reward of the prompt's rollouts (0 without any)        s_failure(q) = 1 − P(q)

    For rewards within [0, 1]; outside them a coefficient is negative, and the term unlearns.
    Shapes: R (N,) → (G,) per term, dimensionless. Source: HPT, arXiv 2509.04419, eq. 9 with f and g linear in P.
    """

    scope = "group"

    success: str
    """The term that gets P (reinforcement)."""
    failure: str
    """The term that gets 1 − P (imitation)."""
    of: RewardName = "reward"
    """The field that holds the rewards."""

    @model_validator(mode="after")
    def _two_terms(self) -> Linear:
        two_terms(self, "success", "failure")
        return self

    def terms(self) -> tuple[str, ...]:
        return (self.success, self.failure)

    def __call__(self, b: View) -> dict[str, Tensor]:
        rate = success(b, self.of)
        return {self.success: rate, self.failure: 1 - rate}
