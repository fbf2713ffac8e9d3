"""CHORD's losses as arXiv 2508.11408 and its authors' code have them: padded tensors under autograd.

`p` is a padded batch: `logp`, `old_logp` (B, L), `mask` (B, L) True at response tokens, `reward`, `group` (B,). Every
function returns the scalar that is minimised; of no rows it is 0. Nothing here comes from upge.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def chord(p: Any, mu: float, weighted: bool) -> Tensor:
    """L = (1 − μ)·L_GRPO + μ·L_SFT, the latter weighted by φ in CHORD-φ."""
    return (1 - mu) * grpo(p.rollouts) + mu * imitation(p.demonstrations, weighted)


def mu_at(step: int, steps: int = 32) -> float:
    """μ from 0.9 to 0.05, on a cosine, and then it stays."""
    return 0.05 + (0.9 - 0.05) * 0.5 * (1 + math.cos(math.pi * min(step, steps) / steps))


def grpo(p: Any) -> Tensor:
    """−(1/Σ_i |o_i|) Σ_i Σ_t min(ρÂ, clip(ρ, 0.8, 1.2)Â), Â in standard deviations of the prompt's rollouts."""
    ratio, advantage = torch.exp(p.logp - p.old_logp), standardised(p.reward, p.group)[:, None]
    return mean_over_tokens(-torch.min(ratio * advantage, torch.clamp(ratio, 0.8, 1.2) * advantage), p.mask)


def imitation(p: Any, weighted: bool) -> Tensor:
    """−(1/Σ_i |y_i|) Σ_i Σ_t φ_t log π_t with φ = sg[π(1 − π)], or φ = 1."""
    probability = torch.exp(p.logp).detach()
    phi = probability * (1 - probability) if weighted else torch.ones_like(probability)
    return mean_over_tokens(-phi * p.logp, p.mask)


def standardised(reward: Tensor, group: Tensor) -> Tensor:
    """(B,) (R − mean)/(std + 1e-6) within each prompt's rows, std with n − 1; 0 for a prompt of one row."""
    advantage = torch.zeros_like(reward)
    for i in range(len(reward)):
        scores = reward[group == group[i]]
        if len(scores) > 1:
            advantage[i] = (reward[i] - scores.mean()) / (scores.std() + 1e-6)
    return advantage


def mean_over_tokens(loss: Tensor, mask: Tensor) -> Tensor:
    """The mean over the response tokens of all rows."""
    return torch.where(mask, loss, 0).sum() / mask.sum().clamp(min=1)
