"""KL-Cov's penalty."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import upge
from clip_cov import covariance


class KlCov(upge.Advantage):
    """The gradient of coefficient·|log(π_θ/π_old)| on the tokens with the largest covariance of log-prob and advantage.

        Â_t = −coefficient · sign(log(π_θ/π_old)_t) for the max(1, ⌊share·T⌋) tokens with the largest cov_t, else 0,
        cov_t = (log π_θ(t) − mean log π_θ) · (A_t − mean A)

    A is the advantage `of`. T and the means are of the term's tokens in the optimizer step, on all ranks.
    Shapes: logp, old_logp (T,), nats → (T,), dimensionless. Source: arXiv 2505.22617, KL-Cov.
    """

    needs = frozenset({"logp", "old_logp"})
    scope = "step"

    of: upge.AnAdvantage
    """The advantage whose covariance with the log-probs is meant: the one that the policy learns by."""
    share: float = Field(default=2e-4, gt=0, le=1)
    """The share of the term's tokens that are pulled back."""
    coefficient: float = Field(default=1.0, ge=0)
    """The weight of the penalty, in units of the reward per nat."""

    def __call__(self, b: upge.View) -> Tensor:
        top = b.top(covariance(b, self.of(b)), b.share(self.share))
        return torch.where(top, -self.coefficient * torch.sign(b.logp - b.old_logp), 0)
