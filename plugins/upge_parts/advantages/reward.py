"""The reward itself."""

from __future__ import annotations

from torch import Tensor

from upge import Advantage, View


class Reward(Advantage):
    """The trajectory's (shaped) reward, without a baseline.

        Â_t = R

    Shapes: reward (N,) → (T,), in units of the reward. Source: REINFORCE, Williams 1992.
    """

    needs = frozenset({"reward"})

    def __call__(self, b: View) -> Tensor:
        return b.to_tokens(b.reward)
