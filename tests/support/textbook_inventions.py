"""The losses of the recipes in recipes/invent/, written without upge: padded tensors under autograd, and plain loops.

`p` is a padded batch: `logp`, `old_logp`, `reference_logp`, `entropy` (B, L), `mask` (B, L) True at response tokens,
`reward`, `group`, `demonstration` (B,). Every function returns the scalar that is minimised; of no rows it is 0.
A statistic "of the step" is over all rows of the batch, which is one optimizer step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from support.textbook import clipped_surrogate, grpo, normalised_advantage, supervised, token_mean
from support.textbook_rl import overlong, reinforce_plus_plus
from torch import Tensor


def group_advantages(p: Any) -> Tensor:
    """(B, L) GRPO's advantage of each row, at all its tokens."""
    rows = [normalised_advantage(p.reward, p.group, i) for i in range(len(p.reward))]
    return torch.stack(rows)[:, None].expand(p.logp.shape) if rows else torch.zeros_like(p.old_logp)


def uncertain(p: Any, quantile: float) -> Tensor:
    """(B, L) bool: the tokens whose entropy is at least the quantile of all rows' tokens."""
    if not bool(p.mask.any()):
        return p.mask
    entropy = p.entropy.detach()
    return p.mask & (entropy >= torch.quantile(entropy[p.mask], quantile))


def eighty_twenty(p: Any, share: float, soft: int, limit: int, *, divide_by_all: bool) -> Tensor:
    """80/20, arXiv 2506.01939, eq. 5, on DAPO: its surrogate on the tokens of the step's largest entropy.

    The mean is over all tokens, as published, or over those alone.
    """
    shaped, gain = p.reward + overlong(p.mask.sum(1), soft, limit), p.logp * 0
    for i in range(len(p.reward)):
        scores = p.reward[p.group == p.group[i]]
        if not bool((scores == scores[0]).all()):
            advantage = normalised_advantage(shaped, p.group, i)
            gain[i] = clipped_surrogate(p.logp[i], p.old_logp[i], advantage, 0.2, 0.28)
    chosen = uncertain(p, 1 - share)
    return -gain[chosen].sum() / max(int((p.mask if divide_by_all else chosen).sum()), 1)


def covariance(p: Any, advantage: Tensor) -> Tensor:
    """(B, L) arXiv 2505.22617, eq. 10: (log π − mean log π)(Â − mean Â), the means over all tokens."""
    logp, count = p.logp.detach(), max(int(p.mask.sum()), 1)
    return (logp - logp[p.mask].sum() / count) * (advantage - advantage[p.mask].sum() / count)


def clip_cov(p: Any, noise: Tensor, share: float, low: float, high: float) -> Tensor:
    """Clip-Cov, arXiv 2505.22617, eq. 11-12, in a clip of the ratio to 0 … 2: the tokens with the largest `noise`
    (B, L), of those with a covariance between the bounds that the clip has left, are detached."""
    advantage, tokens = group_advantages(p), int(p.mask.sum())
    ratio, cov = torch.exp(p.logp - p.old_logp), covariance(p, advantage)
    out = ((advantage > 0) & (ratio > 2)) | ((advantage < 0) & (ratio < 0))
    candidates = (p.mask & ~out & (cov > low) & (cov < high)).nonzero().tolist()
    candidates.sort(key=lambda place: -float(noise[place[0], place[1]]))
    gain = clipped_surrogate(p.logp, p.old_logp, advantage, 1.0, 1.0)
    kept = p.mask.clone()
    for i, t in candidates[: max(1, int(share * tokens + 1e-9))]:
        kept[i, t] = False
    return -gain[kept].sum() / max(tokens, 1)


def kl_cov(p: Any, first: Tensor, share: float, coefficient: float) -> Tensor:
    """KL-Cov, arXiv 2505.22617, as its code has it: ρÂ, less |log ρ| on the tokens with the largest covariance.

    Of equal covariances the token comes first whose number in `first` (B, L) is least.
    """
    advantage, tokens = group_advantages(p), int(p.mask.sum())
    cov, log_ratio = covariance(p, advantage), p.logp - p.old_logp
    places = p.mask.nonzero().tolist()
    places.sort(key=lambda place: (-float(cov[place[0], place[1]]), int(first[place[0], place[1]])))
    loss = -(torch.exp(log_ratio) * advantage)[p.mask].sum()
    for i, t in places[: max(1, int(share * tokens + 1e-9))]:
        loss = loss + coefficient * log_ratio[i, t].abs()
    return loss / max(tokens, 1)


def online_dpo(p: Any, first: Tensor, beta: float) -> Tensor:
    """DPO, arXiv 2305.18290, eq. 7, on the best and the worst of each prompt's rollouts; none where all score alike.

    Of rollouts that score alike the one counts whose number in `first` (B,) is least.
    """
    losses = []
    for prompt in sorted(set(p.group.tolist())):
        rows = [i for i in range(len(p.reward)) if p.group[i] == prompt]
        rows.sort(key=lambda i: int(first[i]))
        best, worst = (pick(rows, key=lambda i: float(p.reward[i])) for pick in (max, min))  # the first of several
        if p.reward[best] > p.reward[worst]:
            h = [(p.logp[i] - p.reference_logp[i])[p.mask[i]].sum() for i in (best, worst)]
            losses.append(-torch.nn.functional.logsigmoid(beta * (h[0] - h[1])))
    return torch.stack(losses).mean() if losses else p.logp.sum() * 0


def signed_counts(p: Any) -> Tensor:
    """PPO's surrogate: rows with Â > 0 by the mean over rows of their means, tokens with Â < 0 by their mean."""
    positive, negative = [], []
    for i in range(len(p.reward)):
        advantage = normalised_advantage(p.reward, p.group, i)
        gain = clipped_surrogate(p.logp[i], p.old_logp[i], advantage, 0.2, 0.2)[p.mask[i]]
        if advantage > 0:
            positive.append(gain.mean())
        if advantage < 0:
            negative.append(gain)
    loss = p.logp.sum() * 0
    if positive:
        loss = loss - sum(positive) / len(positive)
    return loss - torch.cat(negative).mean() if negative else loss


def controlled_entropy(
    p: Any, before: Sequence[Any], target: float, proportional: float, integral: float, limit: float
) -> Tensor:
    """GRPO with an entropy bonus, its weight that of a PI controller after the rollout batches `before`."""
    error = total = 0.0
    for batch in before:
        values = batch.entropy[batch.mask].tolist()
        error = target - sum(values) / len(values) if values else 0.0
        total = min(max(total + integral * error, -limit), limit)
    weight = min(max(proportional * error + total, -limit), limit)
    return _grpo(p) - weight * token_mean(p.entropy, p.mask)


def adaptive_kl(p: Any, before: Sequence[Any], start: float, target: float, gain: float = 0.1) -> Tensor:
    """REINFORCE++ with Ziegler's coefficient, arXiv 1909.08593, section 2.2, after the rollout batches `before`."""
    coefficient = start
    for batch in before:
        costs = [float((batch.old_logp - batch.reference_logp)[i][own].sum()) for i, own in enumerate(batch.mask)]
        if costs:
            error = min(max((sum(costs) / len(costs) - target) / target, -0.2), 0.2)
            coefficient *= 1 + gain * error
    return reinforce_plus_plus(p, coefficient)


def token_switch(p: Any, quantile: float) -> Tensor:
    """GRPO's surrogate where the policy is sure, −log π of demonstrations where it isn't: a mean over tokens each."""
    unsure = uncertain(p, quantile)
    r, sure = p.rollouts, ~unsure[~p.demonstration]
    gain = clipped_surrogate(r.logp, r.old_logp, group_advantages(r), 0.2, 0.2)
    shown = p.demonstrations.logp
    return token_mean(-gain, sure & r.mask) + supervised(shown, unsure[p.demonstration])


def _grpo(p: Any) -> Tensor:
    return grpo(p.logp, p.old_logp, p.mask, p.reward, p.group)
