"""The policy over itself."""

from __future__ import annotations

from torch import Tensor

from upge import Denominator, View


class Current(Denominator):
    """The current policy: the ratio is 1 and the weight is the advantage alone (SFT, REINFORCE).

        log π_ref = log π_θ   ⇒   ρ_t = 1

    Shapes: → (T,), nats. Source: the score-function gradient, Williams 1992.
    """

    needs = frozenset({"logp"})

    def __call__(self, b: View) -> Tensor:
        return b.logp
