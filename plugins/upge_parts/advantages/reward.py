"""The reward itself."""

from __future__ import annotations

from torch import Tensor

from upge import Advantage, View
from upge_parts.groups import RewardName


class Reward(Advantage):
    """The trajectory's (shaped) reward, without a baseline.

        Â_t = R

    Shapes: R (N,) → (T,), in units of the reward. Source: REINFORCE, Williams 1992.
    """

    of: RewardName = "reward"
    """The field that holds the rewards."""

    def __call__(self, b: View) -> Tensor:
        return b.to_tokens(b.field(self.of))
