"""Fixed coefficients."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import Switch, View


class Always(Switch):
    """The same coefficients for every prompt.

        s_term(q) = weights[term]

    Shapes: → (G,) per term, dimensionless. Source: a weighted sum of losses.
    """

    weights: dict[str, float] = Field(min_length=1)
    """The coefficient of each named term."""

    def terms(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def wants(self, step: int) -> frozenset[str]:
        return frozenset(term for term, weight in self.weights.items() if weight != 0)

    def __call__(self, b: View) -> dict[str, Tensor]:
        ones = torch.ones_like(b.per_prompt(b.rollout))
        return {term: ones * weight for term, weight in self.weights.items()}
