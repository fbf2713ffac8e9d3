"""CHORD's weight of a demonstrated token."""

from __future__ import annotations

from torch import Tensor

from upge import Mask, View


class ChordPhi(Mask):
    """Imitates where the policy is undecided: a token that it is sure of, or thinks impossible, weighs nothing.

        mask_t = π_θ(t) · (1 − π_θ(t))

    For demonstrations over the denominator `current`. The weight is detached: it is φ·∇log π and not ∇(φ·log π). It is
    at most ¼, where π_θ = ½. A weight, and no trust region.
    Shapes: logp (T,), nats → (T,), dimensionless. Source: the φ of CHORD, arXiv 2508.11408.
    """

    api = 1
    needs = frozenset({"logp"})

    def __call__(self, b: View) -> Tensor:
        # −expm1(x) is 1 − exp(x) without its cancellation near x = 0, where most demonstrated tokens end up.
        return b.logp.exp() * -b.logp.expm1()
