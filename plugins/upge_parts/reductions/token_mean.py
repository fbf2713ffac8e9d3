"""Every token counts the same."""

from __future__ import annotations

from torch import Tensor

from upge import Reduction, View


class TokenMean(Reduction):
    """The mean over all tokens of the optimizer step: long trajectories weigh more (SFT, DAPO's and CISPO's code).

        n_t = 1 / Σ_i |o_i|      with the sum over all counted trajectories of the optimizer step

    Shapes: → (), 1/tokens. Source: the code of DAPO and CISPO, verl's token-mean; in print they have `prompt_mean`.
    """

    def __call__(self, b: View) -> Tensor:
        return 1 / b.total(self.counted(b) * b.length)
