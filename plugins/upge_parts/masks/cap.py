"""CISPO's truncated weight."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from upge import View
from upge_parts.masks.ratio import RatioMask


class Cap(RatioMask):
    """The ratio is capped and no token loses its gradient: the weight becomes min(ρ, ratio_max)·Â.

        mask_t = min(1, ratio_max/ρ_t)
        old:      with ρ_t = π_θ(t)/π_old(t)
        rollout:  with ρ_t = π_θ(t)/π_rollout(t)

    Shapes: ratio (T,) → (T,), dimensionless. Source: CISPO, arXiv 2506.13585, without its lower bound.
    """

    trust_region = True

    ratio_max: float = Field(ge=1)
    """The largest ratio. In use: 5 (TRL's docs, SkyRL), 1.2 (verl's example); the paper has none."""

    def __call__(self, b: View) -> Tensor:
        return (self.ratio_max / b.ratio_to(self.against)).clamp(max=1)
