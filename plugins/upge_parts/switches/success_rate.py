"""The gate of Hybrid Post-Training."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import model_validator
from torch import Tensor

from upge import Number, Switch, View, Within, at
from upge_parts.groups import RewardName, success
from upge_parts.switches.naming import two_terms


class SuccessRate(Switch):
    """HPT's gate: reinforcement for prompts that the policy can solve, imitation for the others.

        P(q) = mean reward of the prompt's rollouts (0 without any)
        s_above(q) = 1 where P(q) > threshold, else 0        s_otherwise(q) = 1 − s_above(q)

    A P that differs from the threshold by rounding alone is not above it.
    Shapes: R (N,) → (G,) per term, dimensionless. Source: HPT, arXiv 2509.04419, eq. 8 (P) and 10 (the gate).
    """

    scope = "group"

    threshold: Annotated[Number, Within(0)] = 0.0
    """γ, in units of the reward, or a schedule: 0 requires one success."""
    above: str
    """The term for prompts above the threshold (reinforcement)."""
    otherwise: str
    """The term for the others (imitation)."""
    of: RewardName = "reward"
    """The field that holds the rewards."""

    @model_validator(mode="after")
    def _two_terms(self) -> SuccessRate:
        two_terms(self, "above", "otherwise")
        return self

    def terms(self) -> tuple[str, ...]:
        return (self.above, self.otherwise)

    def __call__(self, b: View) -> dict[str, Tensor]:
        rate = success(b, self.of)
        rounding = 16 * torch.finfo(b.dtype).eps * rate.abs()
        above = torch.where(rate.isnan(), rate, (rate - at(self.threshold, b.step) > rounding).to(b.dtype))
        return {self.above: above, self.otherwise: 1 - above}
