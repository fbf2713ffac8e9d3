"""Several advantages in one."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

import upge


class Sum(upge.Advantage):
    """A weighted sum of advantages, whitened over the rollout batch if asked.

        A_t = Σ_k w_k · A_k,t        whiten:  Â_t = (A_t − mean(A)) / √(var(A) + 1e-8), else Â_t = A_t

    Mean and variance (with n − 1) are over all tokens of the term, on all ranks. Equal A whiten to 0.
    Shapes: → (T,), in units of the advantages. Source: GDPO, arXiv 2601.05242.
    """

    scope = "step"

    of: tuple[upge.AnAdvantage, ...] = Field(min_length=1)
    """The advantages."""
    weights: tuple[float, ...]
    """A weight for each."""
    whiten: bool = False
    """Whiten the sum."""

    def __call__(self, b: upge.View) -> Tensor:
        total = b.to_tokens(b.length * 0)
        for weight, part in zip(self.weights, self.of, strict=True):
            total = total + weight * part(b)
        if not self.whiten:
            return total
        own = b.to_tokens(b.rows)
        count = b.total(own)
        centred = total - b.total(total.where(own, 0)) / count.clamp(min=1)
        variance = b.total((centred**2).where(own, 0)) / (count - 1).clamp(min=1)
        return centred.where(variance > 1e-24, 0) / (variance + 1e-8).sqrt()
