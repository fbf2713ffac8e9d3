"""A KL penalty as a cost of each token."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from upge import Number, Shaping, View, Within, at


class KlInReward(Shaping):
    """Each token of a rollout is penalized by the policy's log-ratio to the reference model at this token (k1).

        shaping_t = −coefficient · ln(π_old/π_0)_t

    Summed from a token to the end it is the KL-to-go, whose gradient is that of the sequence's KL(π_θ‖π_0).
    Demonstrations get no penalty.
    Shapes: old_logp, reference_logp (T,), nats → (T,), in units of the reward.
    Source: RLHF, arXiv 2203.02155, eq. 2; REINFORCE++, arXiv 2501.03262.
    """

    needs = frozenset({"old_logp", "reference_logp"})

    coefficient: Annotated[Number, Within(0)]
    """β, in units of the reward per nat, or a schedule."""

    def __call__(self, b: View) -> Tensor:
        cost = -at(self.coefficient, b.step) * (b.old_logp - b.reference_logp)
        return torch.where(b.to_tokens(b.rollout), cost, 0)
