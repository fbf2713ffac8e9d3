"""The published losses, written as the papers print them: padded (B, L) tensors under autograd, nothing from upge.

`logp`, `old_logp`, `entropy`, `mask` are (B, L): a row a trajectory, `mask` True at response tokens. `reward`, `group`
and `demonstration` are (B,). Every function returns the scalar that the paper minimises; of no rows it is 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def supervised(logp: Tensor, mask: Tensor) -> Tensor:
    """SFT: the mean over all tokens of −log π."""
    return token_mean(-logp, mask)


def dynamic_fine_tuning(logp: Tensor, mask: Tensor) -> Tensor:
    """DFT, arXiv 2508.05629, eq. 9: −sg(π)·log π, token by token, the mean over tokens."""
    return token_mean(-logp.exp().detach() * logp, mask)


def imitation_by_uncertainty(logp: Tensor, mask: Tensor) -> Tensor:
    """CHORD-φ's imitation, arXiv 2508.11408: −sg(π(1 − π))·log π, the mean over tokens."""
    probability = logp.exp().detach()
    return token_mean(-probability * (1 - probability) * logp, mask)


def reinforce(logp: Tensor, mask: Tensor, reward: Tensor) -> Tensor:
    """REINFORCE with ±1, arXiv 2509.04419: −(1/N) Σ_i Â_i log π(o_i), Â = +1 where right, −1 where wrong."""
    losses = []
    for i in range(len(reward)):
        sign = 1.0 if reward[i] > 0 else -1.0
        losses.append(-sign * logp[i][mask[i]].sum())
    return mean_of(losses, logp)


def ppo(logp: Tensor, old_logp: Tensor, mask: Tensor, advantage: Tensor, epsilon: float) -> Tensor:
    """PPO's clipped surrogate, arXiv 1707.06347, eq. 7, with given advantages (B, L)."""
    return token_mean(-clipped_surrogate(logp, old_logp, advantage, epsilon, epsilon), mask)


def grpo(
    logp: Tensor,
    old_logp: Tensor,
    mask: Tensor,
    reward: Tensor,
    group: Tensor,
    epsilon: float = 0.2,
    unbiased: bool = True,
    stabiliser: float = 1e-6,
) -> Tensor:
    """GRPO, arXiv 2402.03300, eq. 3 without its KL: (1/N) Σ_i (1/|o_i|) Σ_t min(ρÂ, clip(ρ)Â)."""
    losses = []
    for i in range(len(reward)):
        advantage = normalised_advantage(reward, group, i, unbiased, stabiliser)
        own = mask[i]
        gain = clipped_surrogate(logp[i][own], old_logp[i][own], advantage, epsilon, epsilon)
        losses.append(-gain.sum() / own.sum())
    return mean_of(losses, logp)


def dr_grpo(
    logp: Tensor, old_logp: Tensor, mask: Tensor, reward: Tensor, group: Tensor, length: float, epsilon: float = 0.2
) -> Tensor:
    """Dr.GRPO, arXiv 2503.20783: no standard deviation, no division by |o_i| but by a constant length."""
    losses = []
    for i in range(len(reward)):
        others = [float(reward[j]) for j in range(len(reward)) if group[j] == group[i]]
        advantage = torch.tensor(float(reward[i]) - sum(others) / len(others), dtype=logp.dtype)
        own = mask[i]
        gain = clipped_surrogate(logp[i][own], old_logp[i][own], advantage, epsilon, epsilon)
        losses.append(-gain.sum() / length)
    return mean_of(losses, logp)


def hybrid(
    logp: Tensor,
    old_logp: Tensor,
    mask: Tensor,
    reward: Tensor,
    group: Tensor,
    demonstration: Tensor,
    gate: float,
    length: float,
) -> Tensor:
    """HPT, arXiv 2509.04419, eq. 11-13: reinforcement where P > γ, imitation of the demonstrations where P ≤ γ."""
    rollouts = [i for i in range(len(reward)) if not demonstration[i]]
    shown = [i for i in range(len(reward)) if demonstration[i]]
    loss = logp.sum() * 0
    for prompt in sorted(set(group.tolist())):
        scores = [float(reward[i]) for i in rollouts if group[i] == prompt]
        performance = sum(scores) / len(scores) if scores else 0.0
        for i in range(len(reward)):
            if group[i] != prompt:
                continue
            own = mask[i]
            if performance > gate and not demonstration[i]:
                advantage = normalised_advantage(reward[rollouts], group[rollouts], rollouts.index(i))
                gain = clipped_surrogate(logp[i][own], old_logp[i][own], advantage, 0.2, 0.2)
                loss = loss - gain.sum() / length / len(rollouts)
            if performance <= gate and demonstration[i]:
                loss = loss - logp[i][own].mean() / len(shown)
    return loss


def hybrid_as_its_code_runs_it(
    logp: Tensor,
    old_logp: Tensor,
    entropy: Tensor,
    mask: Tensor,
    reward: Tensor,
    group: Tensor,
    demonstration: Tensor,
    length: float,
) -> Tensor:
    """HPT by its official code: rows that the gate turns off are deleted; Σ ρÂ/L, token-mean SFT, .001 entropy."""
    kept = []
    for i in range(len(reward)):
        scores = reward[(group == group[i]) & ~demonstration]
        solved = len(scores) > 0 and float(scores.mean()) > 0
        kept.append(solved != bool(demonstration[i]))
    rows = torch.tensor(kept, dtype=torch.bool)
    loss = logp.sum() * 0
    for i in range(len(reward)):
        if rows[i] and not demonstration[i]:
            scores = reward[(group == group[i]) & ~demonstration]
            ratio = torch.exp(logp[i] - old_logp[i])[mask[i]]
            loss = loss - (ratio * (reward[i] - scores.mean())).sum() / length
    shown = rows & demonstration
    return loss + supervised(logp[shown], mask[shown]) + entropy_bonus(entropy[rows], mask[rows], 0.001)


def entropy_bonus(entropy: Tensor, mask: Tensor, coefficient: float) -> Tensor:
    """−coefficient times the mean over all tokens of H(π(·|prefix))."""
    return -coefficient * token_mean(entropy, mask)


# What the papers share.


def clipped_surrogate(logp: Tensor, old_logp: Tensor, advantage: Tensor, low: float, high: float) -> Tensor:
    """min(ρÂ, clip(ρ, 1 − low, 1 + high)Â)."""
    ratio = torch.exp(logp - old_logp)
    return torch.min(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)


def normalised_advantage(
    reward: Tensor, group: Tensor, i: int, unbiased: bool = True, stabiliser: float = 1e-6
) -> Tensor:
    """(r_i − mean)/(std + 1e-6) over the group of i, std with n − 1 or n; 0 in a group of one."""
    own = reward[group == group[i]]
    if len(own) == 1:
        return torch.zeros((), dtype=reward.dtype)
    return (reward[i] - own.mean()) / (own.std(unbiased=unbiased) + stabiliser)


def centred_advantage(reward: Tensor, group: Tensor, demonstration: Tensor) -> Tensor:
    """(B,) a rollout's score less the mean of its prompt's rollouts; 0 for demonstrations."""
    advantage = torch.zeros_like(reward)
    for prompt in group.unique():
        rows = (group == prompt) & ~demonstration
        if bool(rows.any()):
            advantage = torch.where(rows, reward - reward[rows].mean(), advantage)
    return advantage


def token_mean(x: Tensor, mask: Tensor) -> Tensor:
    """The mean of x over the tokens of all rows."""
    return x[mask].sum() / max(int(mask.sum()), 1)


def mean_of(losses: list[Tensor], like: Tensor) -> Tensor:
    """The mean of a list of scalars; 0 of none."""
    return torch.stack(losses).mean() if losses else like.sum() * 0
