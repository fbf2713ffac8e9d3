"""The policy over the engine's own probabilities."""

from __future__ import annotations

from torch import Tensor

from upge import Denominator, View


class Rollout(Denominator):
    """The policy as the inference engine reported it when it sampled: one ratio for staleness and numerics together.

        log π_ref = log π_rollout   ⇒   ρ_t = π_θ(t)/π_rollout(t)

    Where `top_p` or `top_k` cuts the distribution, the ratio of an unchanged policy is the remaining share, below 1:
    bound the ratio to the old policy (`against: old`). Tokens outside the cut are never drawn, so the gradient is that
    of responses from the cut distribution. For rollouts alone: no engine drew demonstrations.
    Shapes: → (T,), nats. Source: importance sampling against the behaviour policy.
    """

    needs = frozenset({"rollout_logp"})

    def __call__(self, b: View) -> Tensor:
        return b.rollout_logp
