"""GMPO's clip."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import Mask, View


class GeometricClip(Mask):
    """Bounds every token's ratio to the old policy before their geometric mean is taken, on the side it is pushed to.

        mask_t = s̃/ρ_t where c_t = r_t, else 0
        s̃ = exp((1/|o|) Σ_i c_i)
        c_t = min(r_t, log_bound) where Â_t > 0, max(r_t, −log_bound) where Â_t < 0, else r_t
        r_t = log π_θ(t) − log π_old(t)

    Over the denominator `sequence` ρ_t is s, the geometric mean before clipping, and the weight becomes s̃·Â for every
    token that is not clipped. At r_t = ±log_bound the gradient is kept. Where Â = 0 nothing is clipped, nor pushed.
    Shapes: logp, old_logp (T,), nats; ratio, advantage (T,) → (T,), dimensionless.
    Source: GMPO, arXiv 2507.20673; verl's geo_mean.
    """

    api = 1
    needs = frozenset({"logp", "old_logp"})
    trust_region = True
    scope = "trajectory"

    log_bound: float = Field(ge=0)
    """ε in nats: ratios count from exp(−ε) to exp(ε); the paper has 0.4."""

    def __call__(self, b: View) -> Tensor:
        log_ratio = b.log_ratio_to("old")
        clipped = torch.where(b.advantage > 0, log_ratio.clamp(max=self.log_bound), log_ratio)
        clipped = torch.where(b.advantage < 0, log_ratio.clamp(min=-self.log_bound), clipped)
        mean = b.per_trajectory(clipped) / b.length.clamp(min=1)
        return torch.where(clipped == log_ratio, b.to_tokens(mean.exp()) / b.ratio, 0)
