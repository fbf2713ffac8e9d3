"""One term of an estimator: the parts of a weighted sum of score vectors, and what each of them needs to see."""

from __future__ import annotations

from typing import Literal

from upge.part import (
    ADenominator,
    AnAdvantage,
    AReduction,
    Factor,
    Masks,
    StrictModel,
    is_live,
)
from upge.part_checks import OF_THETA
from upge.schedule import Number


class Term(StrictModel):
    """One weighted sum of score vectors: Σ_t s · n_t · mask_t · ratio_t · Â_t · ∇log π_θ(t)."""

    source: Literal["rollouts", "demonstrations", "all", "kept"]
    """The tokens' source: the policy's rollouts, the demonstrations, both, or the rows with weight in some likelihood
    term."""
    denominator: ADenominator
    """π_ref."""
    advantage: AnAdvantage
    """Â."""
    reduction: AReduction
    """n."""
    mask: Masks = ()
    """The stability mask; several multiply."""
    weight: Number = 1.0
    """A factor for the whole term, or a schedule."""
    direction: Literal["likelihood", "entropy"] = "likelihood"
    """∇log π_θ of the sampled token, or ∇H of the distribution it was sampled from."""
    count_with: str | None = None
    """The term whose counts this one shares; by default it has its own."""

    @property
    def live(self) -> bool:
        """The advantage depends on θ and is computed for every θ."""
        return is_live(self.advantage)

    def parts(self) -> dict[str, Factor]:
        """The term's parts by where they stand: `"mask.0"`, `"denominator"`, …"""
        return {
            "advantage": self.advantage,
            "denominator": self.denominator,
            **self.masks(),
            "reduction": self.reduction,
        }

    def masks(self) -> dict[str, Factor]:
        """The masks by where they stand."""
        return {f"mask.{i}": mask for i, mask in enumerate(self.mask)}

    def at_theta(self) -> dict[str, Factor]:
        """The parts that are computed for every θ, in that order."""
        live: dict[str, Factor] = {"advantage": self.advantage} if self.live else {}
        return {**live, "denominator": self.denominator, **self.masks()}

    def wide(self) -> frozenset[str]:
        """Where parts stand that are computed for every θ and see the whole optimizer step."""
        return frozenset(place for place, part in self.at_theta().items() if part.scope == "step")

    def needs(self) -> frozenset[str]:
        """The batch fields that the term reads."""
        direction = {"logp"} if self.direction == "likelihood" else {"entropy"}
        return frozenset[str]().union({"logp"}, direction, *(part.reads() for part in self.parts().values()))

    def needs_for_count(self) -> frozenset[str]:
        """The batch fields that must be there for all of an optimizer step before its first micro-batch."""
        if self.wide():
            parts = (*self.at_theta().values(), self.reduction)
            return frozenset({"logp"}).union(*(part.reads() for part in parts))
        return self.reduction.reads() if self.reduction.reads() & OF_THETA else frozenset()
