"""Weights that move with the step."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import Number, Switch, View, at


class Scheduled(Switch):
    """The same coefficients for every prompt, scheduled over the steps.

        s_term(q) = weights[term](step)

    Shapes: → (G,) per term, dimensionless. Source: the μ of CHORD, arXiv 2508.11408.
    """

    weights: dict[str, Number] = Field(min_length=1)
    """For each named term a number, or a schedule from `start` to `end` in `steps` rollout batches."""

    def terms(self) -> tuple[str, ...]:
        return tuple(self.weights)

    def wants(self, step: int) -> frozenset[str]:
        return frozenset(term for term, weight in self.weights.items() if at(weight, step) != 0)

    def __call__(self, b: View) -> dict[str, Tensor]:
        ones = torch.ones_like(b.per_prompt(b.rollout))
        return {term: ones * at(weight, b.step) for term, weight in self.weights.items()}
