"""Dr.GRPO's advantage."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from upge import Advantage, View


class GroupMean(Advantage):
    """The reward over the mean of its prompt's group, not divided by the standard deviation.

        Â_t = R − mean_group(R)

    A group of one has advantage 0.
    Shapes: reward (N,) → (T,), in units of the reward. Source: Dr.GRPO, arXiv 2503.20783, section 3.2.
    """

    needs = frozenset({"reward"})

    over: Literal["rollouts", "all"] = "rollouts"
    """The group: the prompt's rollouts, or its rollouts and demonstrations."""

    def __call__(self, b: View) -> Tensor:
        members = b.rollout if self.over == "rollouts" else torch.ones_like(b.rollout)
        return b.to_tokens(deviation(b, members))


def deviation(b: View, members: Tensor) -> Tensor:
    """(N,) reward minus the mean over its prompt's `members` (N,) bool; 0 where the prompt has fewer than two.

    Where all members' rewards are equal the deviation of a member is exactly 0, whatever the mean rounds to.
    """
    count = b.per_prompt(members)
    mean = b.per_prompt(b.reward * members) / count.clamp(min=1)
    centred = b.reward - b.to_trajectories(mean)
    alike = b.to_trajectories(_spread(b, members) == 0) & members
    return torch.where(b.to_trajectories(count < 2) | alike, 0.0, centred)


def _spread(b: View, members: Tensor) -> Tensor:
    """(G,) largest minus smallest reward of the prompt's members; 0 without members."""
    rewards, index = b.reward[members], b.prompt[members]
    zeros = torch.zeros_like(b.per_prompt(members))
    largest = zeros.scatter_reduce(0, index, rewards, "amax", include_self=False)
    return largest - zeros.scatter_reduce(0, index, rewards, "amin", include_self=False)
