"""A divisor that no trajectory's length changes."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from upge import DefaultFrom, Reduction, View


class Constant(Reduction):
    """Sums over tokens divided by a fixed length, so that a token's weight is independent of length (Dr.GRPO).

        trajectory:  n_t = 1 / (N · length)    with N all counted trajectories of the optimizer step
        none:        n_t = 1 / length

    Shapes: → (), 1/tokens. Source: Dr.GRPO, arXiv 2503.20783, listing 1; `per: none`: the code of arXiv 2509.04419.
    """

    length: int = DefaultFrom("rollout.max_tokens", gt=0)
    """L, in tokens; the completion budget unless given."""
    per: Literal["trajectory", "none"] = "trajectory"
    """Whether the sum is divided by the number of trajectories as well."""

    def __call__(self, b: View) -> Tensor:
        trajectories = b.total(self.counted(b)) if self.per == "trajectory" else torch.ones((), dtype=b.dtype)
        return 1 / (trajectories * self.length)
