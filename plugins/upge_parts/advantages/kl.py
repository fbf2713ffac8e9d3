"""A pull towards another policy."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from upge import Advantage, LaterParameter, Number, TokenField, View, Within, at

POLICIES = {"reference": "reference_logp", "old": "old_logp", "rollout": "rollout_logp"}
"""The fields of the policies that have a name of their own."""


class Kl(Advantage):
    """A KL penalty to another policy as an advantage: it pushes each sampled token towards that policy, π_0.

        k2:  Â_t = −coefficient · ln(π_θ/π_0)_t          k3:  Â_t = −coefficient · (1 − (π_0/π_θ)_t)

    Over the denominator `current` these are the gradients of the penalties ½·ln² and r − 1 − ln r, r = π_0/π_θ. On the
    policy's own tokens k2's is the true gradient of each token's KL(π_θ‖π_0) with its prefix fixed, k3's that of
    KL(π_0‖π_θ). k2 over the denominator `old` is the corrected penalty of DeepSeek-V3.2. (k1 would differentiate to a
    push of mean zero, and penalises only as a shaping: `kl_in_reward`.) Log-ratios are clamped to ±20 nats.

        reference:  π_0 is the frozen reference model        old:    π_0 = π_old
        rollout:    π_0 is the engine's policy               a name: ln π_0 is that field

    k2 to a teacher's log-probs is on-policy distillation. The selection `known` leaves out tokens of which a field has
    no number.
    Shapes: logp, ln π_0 (T,), nats → (T,), nats (k2) or dimensionless (k3).
    Source: k2, k3: Schulman 2020, Approximating KL divergence; k3 in GRPO: arXiv 2402.03300, eq. 4; distillation: GKD,
    arXiv 2306.13649.
    """

    needs = frozenset({"logp"})

    estimator: Literal["k2", "k3"]
    """The estimate of the divergence that is differentiated."""
    coefficient: Annotated[Number, Within(0)]
    """β, in units of the reward per nat, or a schedule."""
    to: Annotated[Literal["reference", "old", "rollout"] | TokenField, LaterParameter()] = "reference"
    """The policy that it pulls towards, or the field that holds its log-probs."""

    def reads(self) -> frozenset[str]:
        return super().reads() | ({POLICIES[self.to]} if self.to in POLICIES else frozenset())

    def __call__(self, b: View) -> Tensor:
        log_ratio = (b.logp - b.field(POLICIES.get(self.to, self.to))).clamp(-20, 20)
        excess = log_ratio if self.estimator == "k2" else 1 - torch.exp(-log_ratio)
        return -at(self.coefficient, b.step) * excess
