"""Every trajectory counts the same."""

from __future__ import annotations

from torch import Tensor

from upge import Reduction, View


class SequenceMean(Reduction):
    """The mean over trajectories of each one's token mean (GRPO as published, GSPO).

        n_t = 1 / (N · |o_i|)      with N all counted trajectories of the optimizer step

    Shapes: → (T,), 1/(trajectories · tokens). Source: GRPO, arXiv 2402.03300, eq. 3.
    """

    def __call__(self, b: View) -> Tensor:
        return 1 / (b.total(self.counted(b)) * b.to_tokens(b.length))
