"""A correction for an engine that samples from other numbers than the trainer computes."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from upge import Mask, View


class TruncatedImportance(Mask):
    """The importance weight of the trainer's old policy to the engine's, cut at a bound; independent of θ.

        token:     mask_t = min((π_old/π_rollout)_t, cap)
        sequence:  mask_t = min(Π_i (π_old/π_rollout)_i, cap)

    Demonstrations have the weight 1. The mask is a weight, not a trust region. The product over a long
    trajectory is far from 1 even for small differences, so the level `sequence` reduces the weight of most long
    trajectories.
    Shapes: old_logp, rollout_logp (T,) → (T,), dimensionless.
    Source: truncated importance sampling (TIS), Yao et al. 2025, as in verl and SkyRL.
    """

    needs = frozenset({"old_logp", "rollout_logp"})
    scope = "trajectory"

    cap: float = Field(gt=0)
    """The largest weight; 2 in verl and SkyRL."""
    level: Literal["token", "sequence"] = "token"
    """Each token's own weight, or the product over its trajectory."""

    def __call__(self, b: View) -> Tensor:
        log_weight = b.old_logp - b.rollout_logp
        if self.level == "sequence":
            log_weight = b.to_tokens(b.per_trajectory(log_weight))
        return torch.where(b.to_tokens(b.demonstration), 1.0, log_weight.exp().clamp(max=self.cap))
