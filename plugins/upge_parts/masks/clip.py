"""PPO's clip as a mask."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import View
from upge_parts.masks.ratio import RatioMask


class Clip(RatioMask):
    """PPO's clip: a token loses its gradient where its ratio has left the trust region in the gradient's direction.

        mask_t = 0   where  Â_t > 0 and ρ_t > 1 + high   or   Â_t < 0 and ρ_t < 1 − low;   else 1
        old:      with ρ_t = π_θ(t)/π_old(t)
        rollout:  with ρ_t = π_θ(t)/π_rollout(t)

    This is exactly the gradient of min(ρ·Â, clip(ρ, 1 − low, 1 + high)·Â); at ρ = 1 + high the gradient is kept.
    Shapes: ratio, advantage (T,) → (T,), dimensionless.
    Source: PPO, arXiv 1707.06347, eq. 7; two bounds: DAPO, arXiv 2503.14476, eq. 10.
    """

    trust_region = True

    low: float = Field(ge=0, le=1)
    """ε below: the lower bound is 1 − low."""
    high: float = Field(ge=0)
    """ε above: the upper bound is 1 + high."""

    def __call__(self, b: View) -> Tensor:
        ratio = b.ratio_to(self.against)
        rose_too_far = (b.advantage > 0) & (ratio > 1 + self.high)
        fell_too_far = (b.advantage < 0) & (ratio < 1 - self.low)
        return torch.where(rose_too_far | fell_too_far, 0.0, 1.0)
