"""The published losses that mix demonstrations and rollouts, as the papers print them: padded tensors under autograd.

`p` is a padded batch: `logp`, `old_logp`, `entropy` (B, L), `mask` (B, L) True at response tokens, `reward`, `group`
and `demonstration` (B,). Nothing here comes from upge. Every function returns the scalar that is minimised.
"""

from __future__ import annotations

from typing import Any

import torch
from support.textbook import clipped_surrogate, normalised_advantage, token_mean
from torch import Tensor


def luffy(p: Any, length: float, gamma: float) -> Tensor:
    """LUFFY, arXiv 2504.14945: own rollouts by ρÂ, demonstrations by f(π)Â, f(x) = x/(x + γ); Σ over both / (N·L)."""
    total = p.logp.sum() * 0
    for i in range(len(p.reward)):
        own = p.mask[i]
        together = p.reward[p.group == p.group[i]]
        advantage = float(p.reward[i]) - sum(together.tolist()) / len(together)
        probability = torch.exp(p.logp[i][own])
        ratio = torch.exp(p.logp[i][own] - p.old_logp[i][own])
        gain = probability / (probability + gamma) if p.demonstration[i] else ratio
        total = total - (gain * advantage).sum()
    return total / (len(p.reward) * length) if len(p.reward) else total


def srft(p: Any) -> Tensor:
    """SRFT, arXiv 2506.19767: .5·exp(−H) SFT + off-policy GRPO without clip + own rollouts, right by .1·exp(H)."""
    d, r = p.demonstrations, p.rollouts
    supervised = token_mean(-0.5 * torch.exp(-d.entropy).detach() * d.logp, d.mask)
    advantages = [normalised_advantage(p.reward, p.group, i) for i in range(len(p.reward)) if p.demonstration[i]]
    off = d.logp.sum() * 0
    if advantages:
        off = token_mean(-torch.exp(d.logp) * torch.stack(advantages)[:, None], d.mask)
    right = (r.reward > 0)[:, None]
    own = torch.where(right, 0.1 * torch.exp(r.entropy).detach() * r.logp, -r.logp)
    return supervised + off + token_mean(-own, r.mask)


def soft_hybrid(p: Any, length: float) -> Tensor:
    """HPT with f = P and g = 1 − P, arXiv 2509.04419: Σ_q [P_q·L_RL(q) + (1 − P_q)·L_SFT(q)]."""
    rollouts = [i for i in range(len(p.reward)) if not p.demonstration[i]]
    shown = [i for i in range(len(p.reward)) if p.demonstration[i]]
    loss = p.logp.sum() * 0
    for i in range(len(p.reward)):
        scores = [float(p.reward[j]) for j in rollouts if p.group[j] == p.group[i]]
        performance = sum(scores) / len(scores) if scores else 0.0
        own = p.mask[i]
        if p.demonstration[i]:
            loss = loss - (1 - performance) * p.logp[i][own].mean() / len(shown)
        else:
            advantage = normalised_advantage(p.reward[rollouts], p.group[rollouts], rollouts.index(i))
            gain = clipped_surrogate(p.logp[i][own], p.old_logp[i][own], advantage, 0.2, 0.2)
            loss = loss - performance * gain.sum() / length / len(rollouts)
    return loss
