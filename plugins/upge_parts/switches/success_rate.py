"""The gate of Hybrid Post-Training."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import Switch, View
from upge_parts.groups import success


class SuccessRate(Switch):
    """HPT's gate: prompts that the policy can solve are explored, the others are imitated.

        P(q) = mean reward of the prompt's rollouts (0 without any)
        s_above(q) = 1 where P(q) > threshold, else 0        s_otherwise(q) = 1 − s_above(q)

    A P that differs from the threshold by rounding alone is not above it.
    Shapes: reward (N,) → (G,) per term, dimensionless. Source: HPT, arXiv 2509.04419, eq. 8 (P) and 10 (the gate).
    """

    needs = frozenset({"reward"})
    scope = "group"

    threshold: float = Field(default=0.0, ge=0)
    """γ, in units of the reward: 0 asks for one success."""
    above: str
    """The term for prompts above the threshold (reinforcement)."""
    otherwise: str
    """The term for the others (imitation)."""

    def terms(self) -> tuple[str, ...]:
        return (self.above, self.otherwise)

    def __call__(self, b: View) -> dict[str, Tensor]:
        rate = success(b)
        rounding = 16 * torch.finfo(b.dtype).eps * rate.abs()
        above = (rate - self.threshold > rounding).to(b.dtype)
        return {self.above: above, self.otherwise: 1 - above}
