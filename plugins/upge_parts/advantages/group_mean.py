"""Dr.GRPO's advantage."""

from __future__ import annotations

from torch import Tensor

from upge import Advantage, View
from upge_parts.groups import Over, RewardName, deviation, members


class GroupMean(Advantage):
    """The reward minus the mean of its prompt's group, not divided by the standard deviation.

        Â_t = R − mean_group(R)

    A group of one has advantage 0. Only known rewards are in the mean.
    Shapes: R (N,) → (T,), in units of the reward. Source: Dr.GRPO, arXiv 2503.20783, section 3.2.
    """

    scope = "group"

    over: Over = "rollouts"
    """The group: the prompt's rollouts, or its rollouts and demonstrations."""
    of: RewardName = "reward"
    """The field that holds the rewards."""

    def __call__(self, b: View) -> Tensor:
        reward = b.field(self.of)
        return b.to_tokens(deviation(b, reward, members(b, self.over, reward)))
