"""A KL penalty in the reward whose coefficient follows the divergence."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

import upge


class AdaptiveKl(upge.Shaping):
    """Each rollout token is penalized by its log-ratio to π_0; the coefficient follows a target of the divergence.

        shaping_t = −c · ln(π_old/π_0)_t,   after each rollout batch c ← c · (1 + gain · clip(KL/target − 1, −0.2, 0.2))

    c is `start` at first; KL = mean over rollouts of Σ_t ln(π_old/π_0)_t. Without rollouts c stays.
    Shapes: old_logp, reference_logp (T,), nats → (T,), in units of the reward. Source: arXiv 1909.08593, section 2.2.
    """

    needs = frozenset({"old_logp", "reference_logp"})

    start: float = Field(gt=0)
    """The first coefficient, in units of the reward per nat."""
    target: float = Field(gt=0)
    """The divergence aimed at, in nats a response."""
    gain: float = Field(default=0.1, ge=0, le=1)
    """How far one rollout batch moves the coefficient."""

    def initial(self) -> dict[str, Tensor]:
        return {"coefficient": torch.tensor(self.start, dtype=torch.float64)}

    def cost(self, b: upge.View) -> Tensor:
        return torch.where(b.to_tokens(b.rollout), b.old_logp - b.reference_logp, 0)

    def advance(self, b: upge.View) -> dict[str, Tensor]:
        rollouts = b.total(b.rollout)
        error = (b.total(self.cost(b)) / rollouts.clamp(min=1) / self.target - 1).clamp(-0.2, 0.2)
        return {"coefficient": b.state["coefficient"] * (1 + self.gain * error * (rollouts > 0)).double()}

    def __call__(self, b: upge.View) -> Tensor:
        return -b.state["coefficient"] * self.cost(b)
