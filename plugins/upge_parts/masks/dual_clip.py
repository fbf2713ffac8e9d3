"""PPO's clip with a third bound."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import View
from upge_parts.masks.clip import Clip


class DualClip(Clip):
    """PPO's clip, and a bound for tokens with a negative advantage whose ratio is far above 1.

        mask_t = clip_t,  and 0 where  Â_t < 0 and ρ_t > ratio_max
        old:      with ρ_t = π_θ(t)/π_old(t)
        rollout:  with ρ_t = π_θ(t)/π_rollout(t)

    This is the gradient of max(min(ρ·Â, clip(ρ)·Â), ratio_max·Â) for Â < 0; at ρ = ratio_max the gradient is kept.
    Shapes: ratio, advantage (T,) → (T,), dimensionless. Source: dual-clip PPO, arXiv 1912.09729.
    """

    ratio_max: float = Field(ge=1)
    """The ratio above which a token with a negative advantage has no gradient; verl has 3."""

    def __call__(self, b: View) -> Tensor:
        ran_away = (b.advantage < 0) & (b.ratio_to(self.against) > self.ratio_max)
        return torch.where(ran_away, 0.0, super().__call__(b))
