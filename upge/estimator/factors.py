"""A term's factors, part by part, in the order in which each may see those before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.credit import Credit, TermCredit
from upge.estimator.guards import Guards
from upge.estimator.part_calls import PartCaller
from upge.estimator.term import Term
from upge.estimator.view import Reduce, log_ratio
from upge.part import Factor, Selection, State


def before(batch: Batch) -> dict[str, Tensor]:
    """What log π_θ is before the first update of a rollout batch: log π_old."""
    return {} if batch.old_logp is None else {"logp": batch.old_logp}


def selected(
    caller: PartCaller, selections: Mapping[str, Selection], place: str, state: State, reduce: Reduce | None
) -> Tensor | None:
    """(T,) bool: the tokens that these selections leave of those selected before; only wide ones sum over ranks."""
    for at, selection in selections.items():
        caller.reduce = reduce if selection.scope == "step" else None
        chosen = caller.selection(selection, f"{place}.{at}", state)
        caller.selected = chosen if caller.selected is None else caller.selected & chosen
    return caller.selected


class CreditFactors:
    """What a term's parts give once a rollout batch: the advantage, unless it is live, and selections."""

    def __init__(
        self,
        term: Term,
        name: str,
        batch: Batch,
        step: int,
        state: State,
        rows: Tensor,
        shaped: Mapping[str, Tensor],
        reduce: Reduce,
        guards: Guards,
    ) -> None:
        self._term, self._place, self._state, self._reduce = term, f"terms.{name}", state, reduce
        self._rows = rows
        known = before(batch) | dict(shaped)
        self._caller = PartCaller(batch, step, rows=rows, known=known, reduce=reduce, guards=guards)

    def term_credit(self, coefficient: Tensor) -> TermCredit:
        """The credit of a term with this coefficient, (N,)."""
        place, part = f"{self._place}.advantage", self._term.advantage
        advantage = None if self._term.live else self._caller.factor(part, place, self._state)
        returns = None if self._term.live else self._caller.returns(part, place, self._state)
        self._caller.active = coefficient != 0
        if advantage is not None:
            self._caller.known["advantage"] = advantage
        settled = self._term.selections_of_credit()
        tokens = selected(self._caller, settled, self._place, self._state, self._reduce)
        return TermCredit(coefficient, self._rows, coefficient != 0, advantage, returns=returns, selected=tokens)

    def after(self) -> State:
        """The states that the term's parts leave."""
        self._caller.reduce, self._caller.selected, self._caller.active = self._reduce, None, None
        self._caller.known.pop("advantage", None)
        places = {f"{self._place}.{at}": part for at, part in self._term.parts().items()}
        return {place: self._caller.after(part, place, self._state) for place, part in places.items()}


class Factors:
    """A term's factors at the batch's θ: in `count` over the whole step, with `reduce`, in `weigh` on a micro-batch.

    In `weigh`, parts that see the whole step have given their numbers already. `wide` collects these, `given` all.
    """

    def __init__(
        self,
        term: Term,
        name: str,
        batch: Batch,
        credit: Credit,
        own: TermCredit,
        *,
        guards: Guards,
        reduce: Reduce | None = None,
    ) -> None:
        self._term, self._place, self._batch, self._before = term, f"terms.{name}", batch, credit.before
        self._own, self._reduce = own, reduce
        known = {"reward": credit.reward, "shaping": credit.shaping}
        self._caller = PartCaller(batch, credit.step, rows=own.rows, active=own.active, known=known, guards=guards)
        self._caller.selected = self._own.selected
        self.wide: dict[str, Tensor] = {}
        self.given: dict[str, Tensor] = {} if own.advantage is None else {"advantage": own.advantage}

    def advantage(self) -> Tensor:
        """(T,) Â."""
        return self._once("advantage", self._advantage)

    def ratio(self) -> Tensor:
        """(T,) π_θ/π_ref, after the advantage."""
        self.advantage()
        return self._once("ratio", self._ratio)

    def mask(self) -> Tensor:
        """(T,) the product of the masks."""
        ratio = self.ratio()
        mask = self._known("mask", ratio.new_ones(()).expand_as(ratio))
        for place, part in self._term.masks().items():
            mask = self._known("mask", mask * self._number(place, part))
        return mask

    def selected(self) -> Tensor | None:
        """(T,) bool: the tokens that all selections leave, those that depend on θ after the masks."""
        late = self._term.selections_of_theta()
        return selected(self._caller, late, self._place, self._before, self._reduce)

    def _advantage(self) -> Tensor:
        advantage = self._own.advantage
        if advantage is None:
            advantage = self._number("advantage", self._term.advantage)
        return advantage.to(self._batch.dtype)

    def _ratio(self) -> Tensor:
        logp = cast(Tensor, self._batch.logp).detach()
        return log_ratio(logp, self._number("denominator", self._term.denominator)).exp()

    def _once(self, name: str, factor: Callable[[], Tensor]) -> Tensor:
        """A factor, computed when it is first read. No `cached_property`: its lock would be held during a sum."""
        known = self._caller.known
        return known[name] if name in known else self._known(name, factor())

    def _known(self, name: str, x: Tensor) -> Tensor:
        self._caller.known[name] = x
        return x

    def _number(self, at: str, part: Factor | Selection) -> Tensor:
        """(T,) what a part gives; only one that sees the whole step may sum over it."""
        wide = part.scope == "step"
        if wide and self._reduce is None:
            number = self._own.wide[at]
        else:
            self._caller.reduce = self._reduce if wide else None
            number = self._caller.factor(part, f"{self._place}.{at}", self._before)
        if wide:
            self.wide[at] = number
        self.given[at] = number
        return number
