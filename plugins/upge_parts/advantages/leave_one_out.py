"""RLOO's advantage."""

from __future__ import annotations

from torch import Tensor

from upge import Advantage, View
from upge_parts.groups import Over, RewardName, deviation, members


class LeaveOneOut(Advantage):
    """The reward minus the mean of the *other* trajectories of its prompt's group: a baseline without bias.

        Â_t = R_i − mean_{j ≠ i}(R_j) = n/(n − 1) · (R_i − mean_group(R))

    A group of one has advantage 0. A trajectory outside the group is compared with the mean of
    all n of the group. Only known rewards are in the means.
    Shapes: R (N,) → (T,), in units of the reward. Source: RLOO, arXiv 2402.14740.
    """

    scope = "group"

    over: Over = "rollouts"
    """The group: the prompt's rollouts, or its rollouts and demonstrations."""
    of: RewardName = "reward"
    """The field that holds the rewards."""

    def __call__(self, b: View) -> Tensor:
        reward = b.field(self.of)
        group = members(b, self.over, reward)
        n = b.to_trajectories(b.per_prompt(group))
        among = n / (n - 1).clamp(min=1)
        return b.to_tokens(deviation(b, reward, group) * among.where(group, 1.0))
