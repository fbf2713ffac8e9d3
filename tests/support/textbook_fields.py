"""Losses that need a second model, a second reward, token ids or a problem's history: padded tensors, no upge.

`p` is a padded batch as in `textbook_inventions`. What else a loss needs is a tensor of its own: (B, L) for tokens,
(B,) for trajectories, (B, K) for a prompt's K numbers, each row the prompt's. NaN: there is no number. Every function
returns the scalar that is minimised; of no rows it is 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from support.textbook import clipped_surrogate, grpo, mean_of, normalised_advantage, token_mean
from support.textbook_rl import grpo_with_penalty
from torch import Tensor


def distilled(p: Any, teacher: Tensor, beta: float = 0.0) -> Tensor:
    """On-policy distillation, and a KL to the reference: −sg(log π_T − log π)·log π + β·½ ln²(π/π_0), a mean each.

    The first is the gradient of each token's KL(π‖π_T) with its prefix fixed, on the policy's own tokens. Rows of which
    the teacher says nothing have no first part, and don't count in its mean.
    """
    there = p.mask & ~teacher.isnan()
    gap = (teacher.nan_to_num() - p.logp).detach()
    return token_mean(-gap * p.logp, there) + beta * token_mean((p.logp - p.reference_logp) ** 2 / 2, p.mask)


def reinforced_distillation(p: Any, teacher: Tensor, pull: float, leash: float) -> Tensor:
    """GRPO, and `distilled` with a weight for the teacher and one for the reference."""
    return grpo(p.logp, p.old_logp, p.mask, p.reward, p.group) + pull * distilled(p, teacher, leash / pull)


def distilled_off_policy(p: Any, teacher: Tensor) -> Tensor:
    """On-policy distillation over several updates: the mean over tokens of −ρ·(log π_T − log π_old)."""
    there = p.mask & ~teacher.isnan()
    ratio = torch.exp(p.logp - p.old_logp)
    return token_mean(-ratio * (teacher.nan_to_num() - p.old_logp), there)


def self_distilled(p: Any, hinted: Tensor) -> Tensor:
    """OPSD, and SDPO: the teacher is the policy at the start of the rollout batch, whose prompt has the solution, or
    a success of its own; prompts that have none teach nothing."""
    return distilled(p, hinted)


def pulled_to_average(p: Any, slow: Tensor, beta: float) -> Tensor:
    """GRPO with the k3 penalty of arXiv 2402.03300, eq. 4, to a moving average of the policy."""
    return grpo_with_penalty(dataclasses.replace(p, reference_logp=slow), beta)


def decoupled(p: Any, rewards: Sequence[Tensor], weights: Sequence[float], *, whiten: bool = False) -> Tensor:
    """GDPO, arXiv 2601.05242: each reward (B,) is normalised in its group, and the advantages are added.

    Whitened, their sum is normalised over the tokens of the batch too, by √(var + 1e-8) with n − 1, as verl does
    it; the paper has it over rollouts.
    """
    advantages = []
    for i in range(len(p.reward)):
        each = [w * normalised_advantage(r, p.group, i) for r, w in zip(rewards, weights, strict=True)]
        advantages.append(float(sum(each)))
    if whiten:
        every = [a for a, own in zip(advantages, p.mask, strict=True) for _ in range(int(own.sum()))]
        mean = sum(every) / max(len(every), 1)
        variance = sum((a - mean) ** 2 for a in every) / max(len(every) - 1, 1)
        advantages = [(a - mean) / math.sqrt(variance + 1e-8) for a in advantages]
    return _surrogate(p, [torch.full_like(p.old_logp[i], a) for i, a in enumerate(advantages)])


def segmented(p: Any, token: Tensor, marker: int, first: Tensor, second: Tensor) -> Tensor:
    """GRPO whose tokens up to the first `marker`, it included, have one reward's advantage, and those after another's.

    `token` (B, L) are ids, `first` and `second` (B,) rewards. A response without the marker has the first's alone.
    """
    rows = []
    for i in range(len(p.reward)):
        ids = token[i][p.mask[i]].tolist()
        end = ids.index(marker) + 1 if marker in ids else len(ids)
        row = torch.zeros_like(p.old_logp[i])
        row[:end] = normalised_advantage(first, p.group, i)
        row[end:] = normalised_advantage(second, p.group, i)
        rows.append(row)
    return _surrogate(p, rows)


def remembered(p: Any, history: Tensor, gate: float, length: float) -> Tensor:
    """HPT, arXiv 2509.04419, whose gate is the median of the prompt's last visits: RL above `gate`, else imitation.

    `history` (B, K) are the mean rewards of the visits, NaN before the first; a prompt without a visit is imitated. Of
    an even number the median is the mean of the middle two. Each term is a mean over all rows of its source.
    """
    rollouts = [i for i in range(len(p.reward)) if not p.demonstration[i]]
    shown = [i for i in range(len(p.reward)) if p.demonstration[i]]
    loss = p.logp.sum() * 0
    for i in range(len(p.reward)):
        explored, own = median(history[i].tolist()) > gate, p.mask[i]
        if explored and i in rollouts:
            advantage = normalised_advantage(p.reward[rollouts], p.group[rollouts], rollouts.index(i))
            gain = clipped_surrogate(p.logp[i][own], p.old_logp[i][own], advantage, 0.2, 0.2)
            loss = loss - gain.sum() / length / len(rollouts)
        if not explored and i in shown:
            loss = loss - p.logp[i][own].mean() / len(shown)
    return loss


def median(visits: Sequence[float]) -> float:
    """The median of the numbers that are there; −∞ of none."""
    there = sorted(x for x in visits if not math.isnan(x))
    middle = len(there) // 2
    if not there:
        return -math.inf
    return there[middle] if len(there) % 2 else (there[middle - 1] + there[middle]) / 2


def judged(p: Any, judge: Tensor, coefficient: float) -> Tensor:
    """GRPO on the score plus a second model's opinion: coefficient · the mean log-prob that it gives the response."""
    opinion = [float(judge[i][own].mean()) for i, own in enumerate(p.mask)]
    reward = p.reward + coefficient * torch.tensor(opinion, dtype=p.reward.dtype)
    return grpo(p.logp, p.old_logp, p.mask, reward, p.group)


def _surrogate(p: Any, advantages: Sequence[Tensor]) -> Tensor:
    """PPO's surrogate with ε = 0.2 under advantages (L,) of each row: the mean over rows of their means."""
    losses = []
    for i, advantage in enumerate(advantages):
        own = p.mask[i]
        losses.append(-clipped_surrogate(p.logp[i], p.old_logp[i], advantage, 0.2, 0.2)[own].mean())
    return mean_of(losses, p.logp)
