"""A KL penalty as a cost of each token."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from upge import LaterParameter, Number, Shaping, TokenField, View, Within, at

POLICIES = {"reference": "reference_logp", "rollout": "rollout_logp"}
"""The fields of the policies that have a name of their own."""


class KlInReward(Shaping):
    """Each token of a rollout is penalized by the policy's log-ratio to another policy, π_0, at this token (k1).

        shaping_t = −coefficient · ln(π_old/π_0)_t

    Summed from a token to the end it is the KL-to-go, whose gradient is that of the sequence's KL(π_θ‖π_0).
    Demonstrations get no penalty.

        reference:  π_0 is the frozen reference model        rollout:  π_0 is the engine's policy
        a name:     ln π_0 is that field; it must be known at every token of the rollouts

    Shapes: old_logp, ln π_0 (T,), nats → (T,), in units of the reward.
    Source: RLHF, arXiv 2203.02155, eq. 2; REINFORCE++, arXiv 2501.03262.
    """

    needs = frozenset({"old_logp"})

    coefficient: Annotated[Number, Within(0)]
    """β, in units of the reward per nat, or a schedule."""
    to: Annotated[Literal["reference", "rollout"] | TokenField, LaterParameter()] = "reference"
    """The policy whose distance costs, or the field that holds its log-probs."""

    def reads(self) -> frozenset[str]:
        return super().reads() | ({POLICIES[self.to]} if self.to in POLICIES else frozenset())

    def __call__(self, b: View) -> Tensor:
        cost = -at(self.coefficient, b.step) * (b.old_logp - b.field(POLICIES.get(self.to, self.to)))
        return torch.where(b.to_tokens(b.rollout), cost, 0)
