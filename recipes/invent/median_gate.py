"""A gate with a memory."""

from __future__ import annotations

import torch
from torch import Tensor

import upge


class MedianGate(upge.Switch):
    """One term for prompts whose numbers have a median above a threshold, another for all others.

        s_above(q) = 1 where median_k(field_{q,k}) > threshold, else 0        s_otherwise(q) = 1 − s_above(q)

    The median is of the numbers that are known; of an even count it is the mean of the middle two. Without any the
    prompt is one of the others. Shapes: the field (G, K) → (G,) per term. Source: an invention.
    """

    of: upge.PromptField
    """The field of K numbers per prompt."""
    threshold: float
    """What the median must exceed, in units of the field."""
    above: str
    """The term for prompts above the threshold."""
    otherwise: str
    """The term for the others."""

    def terms(self) -> tuple[str, ...]:
        return (self.above, self.otherwise)

    def __call__(self, b: upge.View) -> dict[str, Tensor]:
        numbers = b.field(self.of)
        median = torch.nanquantile(numbers.reshape(len(numbers), -1), 0.5, dim=1) if len(numbers) else numbers.flatten()
        above = (median > self.threshold).to(b.dtype)
        return {self.above: above, self.otherwise: 1 - above}
