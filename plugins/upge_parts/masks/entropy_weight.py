"""SRFT's two weights."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from upge import Mask, View


class EntropyWeight(Mask):
    """A weight by the policy's entropy: imitation decreases with the entropy (−), exploration increases (+).

        all:       mask_t = scale · exp(sign·h_t)
        positive:  mask_t = scale · exp(sign·h_t) where Â_t > 0, else 1
        negative:  mask_t = scale · exp(sign·h_t) where Â_t < 0, else 1
        token:     with h_t = H_t
        sequence:  with h_t = (1/|o|) Σ_i H_i

    H is detached. The mask is a weight, not a trust region.
    Shapes: entropy (T,), nats → (T,), dimensionless. Source: SRFT, arXiv 2506.19767, eq. 5-13.
    """

    needs = frozenset({"entropy"})
    scope = "trajectory"

    sign: Literal[-1, 1]
    """−1 decreases with the entropy, 1 increases with it."""
    scale: float = Field(gt=0)
    """The weight at entropy 0."""
    level: Literal["token", "sequence"] = "token"
    """Each token's own entropy, or its trajectory's mean."""
    where: Literal["all", "positive", "negative"] = "all"
    """The weighted tokens, by the sign of their advantage: with `signed`, those of right answers are positive."""

    def __call__(self, b: View) -> Tensor:
        entropy = b.entropy
        if self.level == "sequence":
            entropy = b.to_tokens(b.per_trajectory(entropy) / b.length.clamp(min=1))
        weight = self.scale * torch.exp(self.sign * entropy)
        if self.where == "all":
            return weight
        return torch.where(b.advantage > 0 if self.where == "positive" else b.advantage < 0, weight, 1.0)
