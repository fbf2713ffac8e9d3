"""The mean over trajectories of their sums."""

from __future__ import annotations

from torch import Tensor

from upge import Reduction, View


class SequenceSum(Reduction):
    """The mean over trajectories of each one's sum over tokens (RLOO, REINFORCE on whole sequences).

        n_t = 1 / N      with N all counted trajectories of the optimizer step

    Shapes: → (), 1/trajectories. Source: RLOO, arXiv 2402.14740.
    """

    def __call__(self, b: View) -> Tensor:
        return 1 / b.total(self.counted(b))
