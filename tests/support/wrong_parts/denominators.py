"""Wrong denominators. The docstring of each says what is wrong with it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from upge import Denominator, View

ONE_RANK = {"BatchMean", "GroupMean"}
CORNER = {"Wordless", "Warm", "Mixture"}


class BatchMean(Denominator):
    """log π_old moved by its mean over this rank's tokens."""

    scope = "step"
    needs = frozenset({"old_logp"})

    def __call__(self, b: View) -> Any:
        return b.old_logp - b.total(b.old_logp) / max(1, len(b.old_logp))


class GroupMean(Denominator):
    """The mean over the prompt's tokens, said to be one of the token."""

    needs = frozenset({"old_logp"})

    def __call__(self, b: View) -> Any:
        mean = b.per_prompt(b.per_trajectory(b.old_logp)) / b.per_prompt(b.length).clamp(min=1)
        return b.to_tokens(b.to_trajectories(mean))


class Undeclared(Denominator):
    """It reads the engine's log-probs without saying so."""

    def __call__(self, b: View) -> Any:
        return b.rollout_logp


class Idle(Denominator):
    """It declares the reference, so that a run loads one, and reads none of it."""

    needs = frozenset({"old_logp", "reference_logp"})

    def __call__(self, b: View) -> Any:
        return b.old_logp


class Wet(Denominator):
    """It goes around the view, and what it returns carries gradient."""

    needs = frozenset({"logp"})

    def __call__(self, b: View) -> Any:
        return b._batch.logp if b.logp.numel() else b.logp


class PerTrajectory(Denominator):
    """A number per trajectory, where one per token is due."""

    needs = frozenset({"old_logp"})

    def __call__(self, b: View) -> Any:
        return b.per_trajectory(b.old_logp) / b.length.clamp(min=1)


class Wordless(Denominator):
    """A trajectory without a token has no mean: 0/0, which a sum over all takes everywhere."""

    needs = frozenset({"old_logp"})

    def __call__(self, b: View) -> Any:
        means = b.per_trajectory(b.old_logp) / b.length
        return b.old_logp + 0 * means.sum()


class Warm(Denominator):
    """Right but where the warm-up that its field allows takes no steps."""

    needs = frozenset({"old_logp"})
    steps: int = Field(default=8, ge=0, le=100)

    def __call__(self, b: View) -> Any:
        return b.old_logp * (torch.tensor(float(b.step)) / self.steps).clamp(max=1).to(b.dtype)


class Remembering(Denominator):
    """It keeps what it saw first."""

    needs = frozenset({"old_logp"})

    def __call__(self, b: View) -> Any:
        kept = self.__dict__.setdefault("_kept", {})
        return kept.setdefault(len(b.old_logp), b.old_logp.clone())


class Mixture(Denominator):
    """The log of a sum of two probabilities, both of which are 0 in float32."""

    needs = frozenset({"old_logp", "reference_logp"})
    share: float = Field(default=0.5, ge=0.1, le=0.9)

    def __call__(self, b: View) -> Any:
        return ((1 - self.share) * b.old_logp.exp() + self.share * b.reference_logp.exp()).log()
