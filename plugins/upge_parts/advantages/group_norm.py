"""GRPO's advantage."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import Advantage, View
from upge_parts.groups import Over, RewardName, deviation, members, standard_deviation


class GroupNorm(Advantage):
    """The reward in standard deviations from the mean of its prompt's group.

        Â_t = (R − mean_group(R)) / (std_group(R) + epsilon)

    If a group has one trajectory, or only equal rewards, all its advantages are 0, and so are those of trajectories
    compared with it. Only known rewards are in the mean and the deviation. Terms `of` several rewards normalise each
    apart.
    Shapes: R (N,) → (T,), dimensionless.
    Source: GRPO, arXiv 2402.03300, section 4.1; rewards apart: GDPO, arXiv 2601.05242.
    """

    scope = "group"

    unbiased: bool = True
    """Divide the squared deviations by n − 1, not by n."""
    epsilon: float = Field(default=1e-6, ge=0)
    """Added to the standard deviation, in units of the reward."""
    over: Over = "rollouts"
    """The group: the prompt's rollouts, or its rollouts and demonstrations."""
    of: RewardName = "reward"
    """The field that holds the rewards."""

    def __call__(self, b: View) -> Tensor:
        reward = b.field(self.of)
        group = members(b, self.over, reward)
        centred = deviation(b, reward, group)
        std = b.to_trajectories(standard_deviation(b, reward, group, unbiased=self.unbiased))
        return b.to_tokens(torch.where((std == 0) & ~reward.isnan(), 0.0, centred / (std + self.epsilon)))
