"""One thing after the other."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from upge import Switch, View
from upge_parts.switches.naming import Terms


class Phases(Switch):
    """Some terms for the first rollout batches, others after them; upge samples nothing for a term that is off.

        s_first(q) = 1[step < steps]        s_then(q) = 1[step ≥ steps]

    A term in both is always on. Shapes: → (G,) per term, dimensionless. Source: SFT→RL as in arXiv 2509.04419, table 2.
    """

    first: Terms
    """The term, or terms, of the first phase."""
    then: Terms
    """Those of the second."""
    steps: int = Field(ge=0)
    """Rollout batches in the first phase."""

    def terms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.first, *self.then)))

    def wants(self, step: int) -> frozenset[str]:
        return frozenset(self.first if step < self.steps else self.then)

    def __call__(self, b: View) -> dict[str, Tensor]:
        ones = torch.ones_like(b.per_prompt(b.rollout))
        return {term: ones * (term in self.wants(b.step)) for term in self.terms()}
