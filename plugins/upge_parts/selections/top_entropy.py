"""The tokens where the policy is least certain."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from upge import Selection, View


class TopEntropy(Selection):
    """The share of the step's tokens with the largest entropy.

        select_t = [H_t ≥ quantile(H, 1 − share)]

    The quantile is over the tokens of the term's source in the optimizer step, on all ranks. Under `mask` the other
    tokens still count, as in the paper; under `select` they don't.
    Shapes: entropy (T,), nats → (T,) bool. Source: arXiv 2506.01939 (share = 0.2).
    """

    needs = frozenset({"entropy"})
    scope = "step"

    share: float = Field(default=0.2, gt=0, le=1)
    """The share of the tokens that is selected."""

    def __call__(self, b: View) -> Tensor:
        return b.entropy >= b.quantile(b.entropy, 1 - self.share)
