"""Tokens by the policy's certainty."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

import upge


class ByEntropy(upge.Selection):
    """The tokens on one side of a quantile of the entropy over all tokens of the step, whatever their source.

        above:  select_t = [H_t ≥ τ]      with τ = the quantile of H over rollouts and demonstrations
        below:  select_t = [H_t < τ]      with τ = the quantile of H over rollouts and demonstrations

    Shapes: entropy (T,), nats → (T,) bool. Source: an invention.
    """

    needs = frozenset({"entropy"})
    scope = "step"

    side: Literal["above", "below"]
    """Where the policy is unsure, or where it is sure."""
    quantile: float = Field(default=0.8, ge=0, le=1)
    """The share of the step's tokens at which the policy counts as sure."""

    def __call__(self, b: upge.View) -> Tensor:
        bound = b.quantile(b.entropy, self.quantile, where=torch.ones_like(b.entropy, dtype=torch.bool))
        return b.entropy >= bound if self.side == "above" else b.entropy < bound
