"""Right is +1, wrong is −1."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import Advantage, View
from upge_parts.groups import RewardName


class Signed(Advantage):
    """+1 for right answers, −1 for wrong ones.

        Â_t = +1 where R > threshold, else −1

    Shapes: R (N,) → (T,), dimensionless. Source: REINFORCE as arXiv 2509.04419 has it; SRFT, arXiv 2506.19767.
    """

    threshold: float = Field(default=0.0)
    """A reward above this counts as right, in units of the reward."""
    of: RewardName = "reward"
    """The field that holds the rewards."""

    def __call__(self, b: View) -> Tensor:
        reward = b.field(self.of)
        sign = torch.where(reward > self.threshold, 1.0, -1.0)
        return b.to_tokens(torch.where(reward.isnan(), reward, sign))
