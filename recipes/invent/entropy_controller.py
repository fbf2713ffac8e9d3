"""A weight that is steered by the policy's entropy."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import upge


class EntropyController(upge.Weight):
    """A PI controller: a weight by how far the entropy of the batches before was from a target.

        w = clip(proportional · e + I, −limit, limit),   e = target − mean H,   I = Σ of integral · e, clipped alike

    Shapes: entropy (T,), nats → (). Source: an invention; PI control is textbook.
    """

    needs = frozenset({"entropy"})

    target: float = Field(gt=0)
    """The mean entropy of a token, in nats."""
    proportional: float = Field(default=0.02, ge=0)
    """The weight per nat of the last batch's error."""
    integral: float = Field(default=0.005, ge=0)
    """The weight per nat of all errors so far."""
    limit: float = Field(default=0.1, ge=0)
    """The largest weight, up and down."""

    def initial(self) -> dict[str, Tensor]:
        return {"error": torch.zeros((), dtype=torch.float64), "integral": torch.zeros((), dtype=torch.float64)}

    def advance(self, b: upge.View) -> dict[str, Tensor]:
        own = b.to_tokens(b.rows)
        tokens = b.total(own)
        error = (self.target - b.total(own * b.entropy) / tokens.clamp(min=1)).double() * (tokens > 0)
        integral = (b.state["integral"] + self.integral * error).clamp(-self.limit, self.limit)
        return {"error": error, "integral": integral}

    def __call__(self, b: upge.View) -> Tensor:
        return (self.proportional * b.state["error"] + b.state["integral"]).clamp(-self.limit, self.limit)
