"""The policy over the one that sampled."""

from __future__ import annotations

from torch import Tensor

from upge import Denominator, View


class Old(Denominator):
    """The policy at the start of the rollout batch: importance sampling over several updates (PPO, GRPO).

        log π_ref = log π_old   ⇒   ρ_t = π_θ(t)/π_old(t)

    Where the batch is strictly on-policy, π_old is π_θ and the ratio is 1.
    Shapes: → (T,), nats. Source: PPO, arXiv 1707.06347, eq. 3.
    """

    needs = frozenset({"old_logp"})

    def __call__(self, b: View) -> Tensor:
        return b.old_logp
