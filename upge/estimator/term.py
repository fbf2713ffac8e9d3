"""One term of an estimator: the parts of a weighted sum of score vectors, and what each of them needs to see."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, SerializerFunctionWrapHandler, Tag, model_serializer

from upge.part import (
    ADenominator,
    AnAdvantage,
    AReduction,
    AWeight,
    Mask,
    Masks,
    Selection,
    Selections,
    Stateful,
    StrictModel,
    Weight,
    is_live,
)
from upge.part_checks import OF_RATIO, OF_THETA, names_in_code
from upge.schedule import Number, at

Source = Literal["rollouts", "demonstrations", "all", "kept", "forced"]


def _kind(value: Any) -> str:
    """Whether a weight is a part or a number; a text that is a number is refused as one."""
    if isinstance(value, str):
        return "[number]" if value[:1] in "+-.0123456789" else "[part]"
    return "[part]" if isinstance(value, Weight) or (isinstance(value, dict) and "use" in value) else "[number]"


NumberOrWeight = Annotated[Annotated[Number, Tag("[number]")] | Annotated[AWeight, Tag("[part]")], Discriminator(_kind)]


class Term(StrictModel):
    """One weighted sum of score vectors: Σ_t s · n_t · mask_t · ratio_t · Â_t · ∇log π_θ(t)."""

    source: Source
    """The tokens' source: what the policy sampled, the demonstrations, both, the rows with weight in some likelihood
    term, or what an environment wrote into responses."""
    denominator: ADenominator
    """π_ref."""
    advantage: AnAdvantage
    """Â."""
    reduction: AReduction
    """n."""
    mask: Masks = ()
    """The stability mask; several multiply. A selection here is 0 or 1, and what it leaves out still counts."""
    select: Selections = ()
    """The tokens of the source that count; those that all of several select."""
    weight: NumberOrWeight = 1.0
    """A factor for the whole term, a schedule, or a part that makes it of its state."""
    direction: Literal["likelihood", "entropy"] = "likelihood"
    """∇log π_θ of the sampled token, or ∇H of the distribution it was sampled from."""
    count_with: str | None = None
    """The term whose counts this one shares; by default it has its own."""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Keys that came later are left out where they say nothing, so that older runs keep their bytes."""
        dumped: dict[str, Any] = dump(self)
        return {key: value for key, value in dumped.items() if key != "select" or self.select}

    @property
    def live(self) -> bool:
        """The advantage depends on θ and is computed for every θ."""
        return is_live(self.advantage)

    @property
    def keeps(self) -> bool:
        """Whether its rows are kept, for terms whose source is `kept`."""
        return self.direction == "likelihood" and self.source != "kept"

    def may_weigh(self, step: int) -> bool:
        """Whether its weight may differ from 0 at a step."""
        return isinstance(self.weight, Weight) or at(self.weight, step) != 0

    def parts(self) -> dict[str, Stateful]:
        """The term's parts by where they stand: `"mask.0"`, `"denominator"`, …"""
        controller = {"weight": self.weight} if isinstance(self.weight, Weight) else {}
        settled: dict[str, Stateful] = {"advantage": self.advantage, "denominator": self.denominator}
        return {**settled, **self.masks(), "reduction": self.reduction, **self.selections(), **controller}

    def masks(self) -> dict[str, Mask | Selection]:
        """The masks by where they stand."""
        return {f"mask.{i}": mask for i, mask in enumerate(self.mask)}

    def selections(self) -> dict[str, Selection]:
        """The selections by where they stand."""
        return {f"select.{i}": selection for i, selection in enumerate(self.select)}

    def selections_of_theta(self) -> dict[str, Selection]:
        """Those selections that depend on θ, which the rollout batch's credit can't know."""
        return {place: each for place, each in self.selections().items() if self._of_theta(each)}

    def selections_of_credit(self) -> dict[str, Selection]:
        """The other selections."""
        late = self.selections_of_theta()
        return {place: each for place, each in self.selections().items() if place not in late}

    def _of_theta(self, selection: Selection) -> bool:
        named = names_in_code(type(selection))
        return bool(selection.reads() & OF_THETA or named & OF_RATIO or (self.live and "advantage" in named))

    def at_theta(self) -> dict[str, Stateful]:
        """The factors that are computed for every θ, in that order."""
        live: dict[str, Stateful] = {"advantage": self.advantage} if self.live else {}
        return {**live, "denominator": self.denominator, **self.masks()}

    def wide(self) -> frozenset[str]:
        """Where factors stand that are computed for every θ and see the whole optimizer step."""
        return frozenset(place for place, part in self.at_theta().items() if part.scope == "step")

    def needs(self) -> frozenset[str]:
        """The batch fields that the term reads."""
        direction = {"logp"} if self.direction == "likelihood" else {"entropy"}
        return frozenset[str]().union({"logp"}, direction, *(part.reads() for part in self.parts().values()))

    def needs_for_count(self) -> frozenset[str]:
        """The batch fields that must be there for all of an optimizer step before its first micro-batch."""
        selections = self.selections_of_theta()
        if self.wide() or selections:
            parts = (*self.at_theta().values(), *selections.values(), self.reduction)
            return frozenset({"logp"}).union(*(part.reads() for part in parts))
        return self.reduction.reads() if self.reduction.reads() & OF_THETA else frozenset()
