"""GMPO's objective as arXiv 2507.20673 prints it, and as its pseudocode computes it: padded tensors under autograd.

`p` is a padded batch of rollouts: `logp`, `old_logp` (B, L), `mask` (B, L) True at response tokens, `reward`, `group`
(B,). Nothing here comes from upge.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def gmpo(p: Any, epsilon: float = 0.4) -> Tensor:
    """−(1/N) Σ_i sgn(Â_i) · (Π_t |min(ρÂ_i, clip(ρ, e^−ε, e^ε)Â_i)|)^(1/|o_i|), a scalar; of no rows 0."""
    loss = p.logp.sum() * 0
    for i in range(len(p.reward)):
        advantage = standardised(p.reward, p.group, i)
        if advantage == 0:
            continue  # sgn(0) = 0
        ratio = torch.exp(p.logp[i] - p.old_logp[i])[p.mask[i]]
        clipped = torch.clamp(ratio, math.exp(-epsilon), math.exp(epsilon))
        product = torch.min(ratio * advantage, clipped * advantage).abs().prod()
        loss = loss - math.copysign(1, advantage) * product ** (1 / len(ratio)) / len(p.reward)
    return loss


def surrogate(log_ratio: Tensor, advantage: float, epsilon: float) -> Tensor:
    """Â · exp(mean_t of sgn(Â)·min(sgn(Â)·log ρ_t, sgn(Â)·clip(log ρ_t, −ε, ε))) of one response, in log space."""
    sign = math.copysign(1, advantage) if advantage else 0.0
    least = torch.min(sign * log_ratio, sign * torch.clamp(log_ratio, -epsilon, epsilon))
    return advantage * torch.exp((sign * least).mean())


def standardised(reward: Tensor, group: Tensor, i: int) -> float:
    """(R_i − mean)/(std + 1e-6) within the prompt's rows, std with n − 1; 0 for a prompt of one row."""
    scores = reward[group == group[i]]
    return float((reward[i] - scores.mean()) / (scores.std() + 1e-6)) if len(scores) > 1 else 0.0
