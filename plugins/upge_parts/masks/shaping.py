"""LUFFY's policy shaping."""

from __future__ import annotations

from pydantic import Field
from torch import Tensor

from upge import Mask, View


class Shaping(Mask):
    """A larger weight for unlikely tokens: the derivative of f(π) = π/(π + gamma), with the denominator `one`.

        mask_t = f'(π_θ) = gamma/(π_θ(t) + gamma)²

    It is a weight, not a trust region. Shapes: logp (T,) → (T,), dimensionless. Source: LUFFY, arXiv 2504.14945.
    """

    needs = frozenset({"logp"})

    gamma: float = Field(gt=0)
    """γ, a probability: the whole weight π·f'(π) is largest, ¼, at π = γ; f' lifts tokens below √γ − γ."""

    def __call__(self, b: View) -> Tensor:
        return self.gamma / (b.logp.exp() + self.gamma) ** 2
