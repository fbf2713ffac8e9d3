"""Clip-Cov's mask, and the covariance that KL-Cov shares."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

import upge


def covariance(b: upge.View, advantage: Tensor) -> Tensor:
    """(T,) a token's part in the covariance of log π_θ and Â over the term's tokens of the step; 0 at all others."""
    own = b.to_tokens(b.rows).to(b.dtype)
    tokens = b.total(own).clamp(min=1)
    return own * (b.logp - b.total(own * b.logp) / tokens) * (advantage - b.total(own * advantage) / tokens)


class ClipCov(upge.Mask):
    """Random tokens with a large covariance of log-prob and advantage lose their gradient.

        mask_t = 0 for max(1, ⌊share·T⌋) random tokens with low < cov_t < high that no mask before has left out, else 1,
        cov_t = (log π_θ(t) − mean log π_θ) · (Â_t − mean Â)

    T and the means are of the term's tokens in the optimizer step, on all ranks.
    Shapes: logp, advantage (T,) → (T,), dimensionless. Source: arXiv 2505.22617, Clip-Cov.
    """

    needs = frozenset({"logp"})
    scope = "step"

    share: float = Field(default=2e-4, gt=0, le=1)
    """The share of the term's tokens that lose their gradient."""
    low: float = Field(default=1.0, ge=0)
    """The covariance that a chosen token exceeds."""
    high: float = Field(default=5.0, ge=0)
    """The covariance that a chosen token stays below."""

    def __call__(self, b: upge.View) -> Tensor:
        cov = covariance(b, b.advantage)
        inside = b.to_tokens(b.rows) & (cov > self.low) & (cov < self.high)
        return 1 - b.top(b.noise, b.share(self.share), where=inside & (b.mask != 0)).to(b.dtype)
