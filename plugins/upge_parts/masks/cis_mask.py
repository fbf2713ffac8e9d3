"""CISPO's masked variant."""

from __future__ import annotations

from torch import Tensor

from upge import View
from upge_parts.masks.clip import Clip


class CisMask(Clip):
    """PPO's clip with a capped weight: tokens are dropped as by clip, and the others have a capped weight.

        mask_t = clip_t · min(1, (1 + high)/ρ_t)
        old:      with ρ_t = π_θ(t)/π_old(t)
        rollout:  with ρ_t = π_θ(t)/π_rollout(t)

    Shapes: ratio, advantage (T,) → (T,), dimensionless.
    Source: CISPO's unified form, arXiv 2506.13585, eq. 6-7; CIS-Mask in arXiv 2509.04419, table 1.
    """

    def __call__(self, b: View) -> Tensor:
        return super().__call__(b) * ((1 + self.high) / b.ratio_to(self.against)).clamp(max=1)
