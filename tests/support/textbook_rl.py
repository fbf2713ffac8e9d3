"""The published losses of reinforcement on rollouts, as the papers print them: padded tensors under autograd.

`p` is a padded batch of rollouts: `logp`, `old_logp`, … (B, L), `mask` (B, L) True at response tokens, `reward` and
`group` (B,). Nothing here comes from upge. Every function returns the scalar that is minimised; of no rows it is 0.
"""

from __future__ import annotations

from typing import Any

import torch
from support.textbook import clipped_surrogate, mean_of, normalised_advantage, token_mean
from torch import Tensor


def leave_one_out(p: Any) -> Tensor:
    """RLOO, arXiv 2402.14740: −(1/N) Σ_i (R_i − mean of the other rollouts' R) log π(o_i); 0 in a group of one."""
    losses = []
    for i in range(len(p.reward)):
        group = [j for j in range(len(p.reward)) if p.group[j] == p.group[i] and not p.demonstration[j]]
        others = [float(p.reward[j]) for j in group if j != i]
        advantage = float(p.reward[i]) - sum(others) / len(others) if len(group) > 1 else 0.0
        losses.append(-advantage * p.logp[i][p.mask[i]].sum())
    return mean_of(losses, p.logp)


def generalised_advantage(p: Any, gamma: float, lam: float) -> Tensor:
    """(B, L) GAE, arXiv 1506.02438: the recursion Â_t = δ_t + γλ Â_{t+1}; the reward comes with the last token."""
    advantage = torch.zeros_like(p.value)
    for i in range(len(p.reward)):
        length, following = int(p.mask[i].sum()), 0.0
        for t in reversed(range(length)):
            last = t == length - 1
            delta = (float(p.reward[i]) if last else gamma * float(p.value[i, t + 1])) - float(p.value[i, t])
            following = delta + gamma * lam * following
            advantage[i, t] = following
    return advantage


def whitened(x: Tensor, mask: Tensor) -> Tensor:
    """(x − mean)/√(var + 1e-8) over all tokens, var with n − 1."""
    values = x[mask].tolist()
    if not values:
        return x
    mean = sum(values) / len(values)
    variance = sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)
    return (x - mean) / (variance + 1e-8) ** 0.5


def ppo(p: Any, gamma: float = 1.0, lam: float = 1.0, whiten: bool = False, epsilon: float = 0.2) -> Tensor:
    """PPO, arXiv 1707.06347, eq. 7, with GAE."""
    advantage = generalised_advantage(p, gamma, lam)
    advantage = whitened(advantage, p.mask) if whiten else advantage
    return token_mean(-clipped_surrogate(p.logp, p.old_logp, advantage, epsilon, epsilon), p.mask)


def dual_clipped(p: Any, advantage: Tensor, epsilon: float, most: float) -> Tensor:
    """Dual-clip PPO, arXiv 1912.09729: max(min(ρÂ, clip(ρ)Â), cÂ) where Â < 0."""
    plain = clipped_surrogate(p.logp, p.old_logp, advantage, epsilon, epsilon)
    gain = torch.where(advantage < 0, torch.max(plain, most * advantage), plain)
    return token_mean(-gain, p.mask)


def grpo_with_penalty(p: Any, beta: float, kind: str = "k3") -> Tensor:
    """GRPO, arXiv 2402.03300, eq. 3 and 4: the penalty inside the mean over the tokens of each response."""
    losses = []
    for i in range(len(p.reward)):
        own = p.mask[i]
        advantage = normalised_advantage(p.reward, p.group, i)
        gain = clipped_surrogate(p.logp[i][own], p.old_logp[i][own], advantage, 0.2, 0.2)
        log_ratio = p.reference_logp[i][own] - p.logp[i][own]
        penalty = torch.exp(log_ratio) - log_ratio - 1 if kind == "k3" else log_ratio**2 / 2
        losses.append(-(gain - beta * penalty).sum() / own.sum())
    return mean_of(losses, p.logp)


def corrected_penalty(p: Any, beta: float) -> Tensor:
    """DeepSeek-V3.2's unbiased KL estimate: ρ·(r − 1 − ln r), differentiated through both; a mean over tokens."""
    ratio = torch.exp(p.logp - p.old_logp)
    log_r = p.reference_logp - p.logp
    return token_mean(beta * ratio * (torch.exp(log_r) - 1 - log_r), p.mask)


def overlong(length: Tensor, soft: int, limit: int) -> Tensor:
    """(B,) DAPO's soft overlong punishment, arXiv 2503.14476, eq. 13."""
    return torch.where(length <= soft, 0.0, torch.where(length <= limit, (soft - length) / (limit - soft), -1.0))


def priced(p: Any, soft: int, limit: int, beta: float) -> Tensor:
    """−(1/N) Σ_i Â_i log π(o_i) over all rows, Â against all of the prompt; rollouts alone pay for length and KL."""
    cost = torch.stack([((p.old_logp - p.reference_logp) * p.mask).sum(1), -overlong(p.mask.sum(1), soft, limit)])
    shaped = p.reward - torch.where(p.demonstration, 0.0, beta * cost[0] + cost[1])
    losses = []
    for i in range(len(p.reward)):
        own = shaped[p.group == p.group[i]]
        losses.append(-(shaped[i] - own.mean()).detach() * p.logp[i][p.mask[i]].sum())
    return mean_of(losses, p.logp)


def dapo(p: Any, soft: int, limit: int, low: float = 0.2, high: float = 0.28) -> Tensor:
    """DAPO, arXiv 2503.14476, eq. 8-13: clip-higher, a mean over tokens, no gradient from groups that score alike."""
    shaped = p.reward + overlong(p.mask.sum(1), soft, limit)
    gain = p.logp * 0
    for i in range(len(p.reward)):
        scores = p.reward[p.group == p.group[i]]
        if bool((scores == scores[0]).all()):
            continue
        advantage = normalised_advantage(shaped, p.group, i)
        gain[i] = clipped_surrogate(p.logp[i], p.old_logp[i], advantage, low, high)
    return token_mean(-gain, p.mask)


def reinforce_plus_plus(p: Any, beta: float, baseline: bool = False) -> Tensor:
    """REINFORCE++, arXiv 2501.03262: R − β Σ_{i ≥ t} ln(π_old/π_0)_i, whitened over the batch, in PPO's clip."""
    advantage = torch.zeros_like(p.old_logp)
    for i in range(len(p.reward)):
        own = [j for j in range(len(p.reward)) if p.group[j] == p.group[i]]
        score = float(p.reward[i])
        if baseline:
            score = score - sum(float(p.reward[j]) for j in own) / len(own) if len(own) > 1 else 0.0
        for t in range(int(p.mask[i].sum())):
            cost = (p.old_logp[i] - p.reference_logp[i])[t:][p.mask[i][t:]].sum()
            advantage[i, t] = score - beta * cost
    advantage = whitened(advantage.detach(), p.mask)
    return token_mean(-clipped_surrogate(p.logp, p.old_logp, advantage, 0.2, 0.2), p.mask)


def cispo(p: Any, most: float) -> Tensor:
    """CISPO, arXiv 2506.13585: −sg(min(ρ, ε_max))·Â·log π, the mean over tokens."""
    weight = torch.clamp(torch.exp(p.logp - p.old_logp), max=most).detach()
    return token_mean(-weight * _group_advantages(p) * p.logp, p.mask)


def masked_cis(p: Any, low: float, high: float) -> Tensor:
    """CISPO's masked variant: as CISPO with PPO's mask M, −sg(M·min(ρ, 1 + ε_high))·Â·log π."""
    ratio, advantage = torch.exp(p.logp - p.old_logp).detach(), _group_advantages(p)
    out = ((advantage > 0) & (ratio > 1 + high)) | ((advantage < 0) & (ratio < 1 - low))
    weight = torch.where(out, 0.0, torch.clamp(ratio, max=1 + high))
    return token_mean(-weight * advantage * p.logp, p.mask)


def gspo(p: Any, low: float = 3e-4, high: float = 4e-4, product: bool = False) -> Tensor:
    """GSPO, arXiv 2507.18071: min(sÂ, clip(s)Â) per response, s the geometric mean (or the product) of its ratios."""
    losses = []
    for i in range(len(p.reward)):
        log_ratio = (p.logp[i] - p.old_logp[i])[p.mask[i]]
        s = torch.exp(log_ratio.sum() if product else log_ratio.mean())
        advantage = normalised_advantage(p.reward, p.group, i)
        losses.append(-torch.min(s * advantage, torch.clamp(s, 1 - low, 1 + high) * advantage))
    return mean_of(losses, p.logp)


def corrected_grpo(p: Any, cap: float, sequence: bool = False) -> Tensor:
    """GRPO with truncated importance sampling: its surrogate times sg(min(π_old/π_rollout, C))."""
    losses = []
    for i in range(len(p.reward)):
        own = p.mask[i]
        gap = (p.old_logp[i] - p.rollout_logp[i])[own].detach()
        weight = torch.clamp(torch.exp(gap.sum() if sequence else gap), max=cap)
        advantage = normalised_advantage(p.reward, p.group, i)
        gain = clipped_surrogate(p.logp[i][own], p.old_logp[i][own], advantage, 0.2, 0.2)
        losses.append(-(weight * gain).sum() / own.sum())
    return mean_of(losses, p.logp)


def mean_over_prompts(p: Any) -> Tensor:
    """DAPO's objective in print: E over prompts of (1/Σ_i |o_i|) Σ_i Σ_t, with clip-higher and GRPO's advantage."""
    losses = []
    for prompt in sorted(set(p.group.tolist())):
        rows = [i for i in range(len(p.reward)) if p.group[i] == prompt]
        gains = [
            clipped_surrogate(p.logp[i], p.old_logp[i], normalised_advantage(p.reward, p.group, i), 0.2, 0.28)[
                p.mask[i]
            ]
            for i in rows
        ]
        losses.append(-torch.cat(gains).sum() / sum(len(gain) for gain in gains))
    return mean_of(losses, p.logp)


def _group_advantages(p: Any) -> Tensor:
    """(B, 1) GRPO's advantage of each row."""
    rows = [normalised_advantage(p.reward, p.group, i) for i in range(len(p.reward))]
    return torch.stack(rows)[:, None] if rows else p.reward[:, None]
