"""The gradient estimator: terms made of parts, and the place where their factors are multiplied.

    ∇J = Σ_terms Σ_t  weight · s(prompt) · n_t · mask_t · (π_θ/π_ref)_t · Â_t · ∇log π_θ(t)

It works in three phases, and `loss` on one batch is the whole of it:

    credit   once a rollout batch:     switches (s), shaping, advantages (Â)
    count    once an optimizer step:   reductions (n), and what else sees all its micro-batches and all ranks
    weigh    every micro-batch:        denominators (π_ref), masks, and the product of all factors

The sum of the pieces' gradients is the gradient of the whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from functools import reduce as fold
from math import isfinite

import torch
from pydantic import Field, model_validator
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.credit import Credit, TermCredit, TermWeights, Weighed, rows_of, seen_with
from upge.estimator.factors import CreditFactors, Factors, before
from upge.estimator.guards import Guards
from upge.estimator.part_calls import PartCaller, about_nan, first_token, initial_of
from upge.estimator.part_errors import returned
from upge.estimator.term import Term
from upge.estimator.view import Reduce, alone
from upge.field_names import named_fields
from upge.part import Factor, Part, Shapings, State, Stateful, StrictModel, Switch, Switches, Weight, carries_state
from upge.part_checks import SCOPES, Scope
from upge.schedule import at


class Estimator(StrictModel):
    """A sum of terms, and the switches that set their coefficients per prompt."""

    terms: dict[str, Term] = Field(min_length=1)
    """The terms by name."""
    switch: Switches = ()
    """Coefficients per prompt and term; several multiply. A term that no switch names has coefficient 1."""
    shaping: Shapings = ()
    """Added to the reward before the advantage; switches don't read it."""

    @model_validator(mode="after")
    def _names_exist(self) -> Estimator:
        for name, term in self.terms.items():
            if term.count_with in (None, name):
                continue
            if term.count_with not in self.terms:
                self.refuse(("terms", name, "count_with"), f"there is no term '{term.count_with}'")
            if self.terms[term.count_with].count_with is not None:
                self.refuse(("terms", name, "count_with"), f"'{term.count_with}' counts with another term itself")
        if all(term.source == "kept" or term.direction == "entropy" for term in self.terms.values()):
            for name, term in self.terms.items():
                if term.source == "kept":
                    self.refuse(("terms", name, "source"), "no likelihood term with a source of its own keeps any rows")
        for index, switch in enumerate(self.switch):
            for named in switch.terms():
                if named not in self.terms:
                    there = ", ".join(f"'{name}'" for name in self.terms)
                    place = _place(switch, named)
                    message = f"there is no term '{named}'; there are {there}"
                    self.refuse(("switch", index, *place), message, key=place[1:] == (named,))
        return self

    # What a run must provide.

    def wants(self, step: int) -> frozenset[str]:
        """The terms that may have a weight at rollout batch `step`, called before anything is sampled."""
        wanted = {name for name, term in self.terms.items() if term.may_weigh(step)}
        for switch in self.switch:
            wanted -= set(switch.terms()) - switch.wants(step)
        if all(self.terms[name].source == "kept" for name in wanted):
            return frozenset()
        return frozenset(wanted)

    def wants_rollouts(self, step: int) -> bool:
        """Whether a wanted term weighs rollouts, or a switch that weighs a wanted term reads more than of prompts."""
        wanted = self.wants(step)
        return any(self.terms[name].source in ("rollouts", "forced", "all") for name in wanted) or any(
            reads_trajectories(switch) and wanted & set(switch.terms()) for switch in self.switch
        )

    def wants_demonstrations(self, step: int) -> bool:
        """Whether a wanted term weighs demonstrations."""
        return any(self.terms[name].source in ("demonstrations", "all") for name in self.wants(step))

    def weighs_demonstrations(self, name: str) -> bool:
        """Whether the source of the term called `name` has demonstrations in it."""
        own = [term.source for term in self.terms.values() if term.keeps]
        sources = own if self.terms[name].source == "kept" else [self.terms[name].source]
        return not {"demonstrations", "all"}.isdisjoint(sources)

    def needs(self) -> frozenset[str]:
        """The batch fields that any part reads; a run must provide exactly these."""
        return frozenset[str]().union(
            *(term.needs() for term in self.terms.values()), *(part.reads() for part in (*self.switch, *self.shaping))
        )

    def needs_for_credit(self) -> frozenset[str]:
        """The batch fields that `credit` reads: they must be there before the first forward pass with gradient.

        `logp` and `entropy` are then those of π_old.
        """
        settled = [term.advantage for term in self.terms.values() if not term.live]
        controllers = [term.weight for term in self.terms.values() if isinstance(term.weight, Weight)]
        selections = [each for term in self.terms.values() for each in term.selections_of_credit().values()]
        stateful = [part for part in self.parts().values() if carries_state(part)]
        parts = (*self.switch, *self.shaping, *settled, *controllers, *selections, *stateful)
        return frozenset[str]().union(*(part.reads() for part in parts))

    def needs_for_count(self) -> frozenset[str]:
        """The batch fields that `count` reads, at the θ of its optimizer step; none without parts that see all of it.

        They must be there before the step's first micro-batch, for every trajectory of the terms that have such parts.
        """
        return frozenset[str]().union(*(term.needs_for_count() for term in self.terms.values()))

    @property
    def scope(self) -> Scope:
        """The data that a micro-batch needs, at most a prompt's: the widest scope of the parts computed in it."""
        scopes = [part.scope for term in self.terms.values() for part in term.at_theta().values()]
        return max((scope for scope in scopes if scope != "step"), key=SCOPES.index, default="token")

    def parts(self) -> dict[str, Part]:
        """Every part by its place: `"switch.0"`, `"terms.rl.mask.0"`, …"""
        found: dict[str, Part] = {f"switch.{i}": part for i, part in enumerate(self.switch)}
        found |= {f"shaping.{i}": part for i, part in enumerate(self.shaping)}
        for name, term in self.terms.items():
            found |= {f"terms.{name}.{place}": part for place, part in term.parts().items()}
        return found

    def initial(self) -> State:
        """The state before the first rollout batch."""
        return {place: initial_of(part, place) for place, part in self.parts().items() if isinstance(part, Stateful)}

    # The three phases.

    @torch.no_grad()
    def credit(
        self,
        batch: Batch,
        step: int = 0,
        *,
        state: State | None = None,
        reduce: Reduce = alone,
        guards: Guards | None = None,
    ) -> Credit:
        """Switches, shaping, advantages and selections of a rollout batch.

        Args:
            batch: all trajectories of the prompts (`logp` may be None). step: the rollout batch's index.
            state: what the previous `credit` returned; `initial()` by default. reduce: sums over ranks.
            guards: keeps what is wrong with parts' numbers for the caller to read; by default it is raised here.
        """
        if guards is None:
            with raising() as guards:
                return self.credit(batch, step, state=state, reduce=reduce, guards=guards)
        state = self.initial() if state is None else state
        after: State = {}
        coefficients = self._coefficients(batch, step, state, after, reduce, guards)
        shaped = self._shaped(batch, step, state, after, reduce, guards)
        terms: dict[str, TermCredit] = {}
        for name in self._kept_last():
            rows = self._rows(name, batch, terms)
            factors = CreditFactors(self.terms[name], name, batch, step, state, rows, shaped, reduce, guards)
            terms[name] = factors.term_credit(torch.where(rows, coefficients[name], 0))
            after |= factors.after()
        return Credit({name: terms[name] for name in self.terms}, step, before=state, state=after, **shaped)

    @torch.no_grad()
    def count(self, batch: Batch, credit: Credit, *, reduce: Reduce = alone, guards: Guards | None = None) -> Credit:
        """Adds n, and the numbers of the parts that see the whole step. All of them are over all ranks.

        Args:
            batch: this rank's share of one optimizer step, with the fields that `needs_for_count` names.
            credit: its credit. reduce: sums over ranks. guards: as for `credit`.
        """
        if guards is None:
            with raising() as guards:
                return self.count(batch, credit, reduce=reduce, guards=guards)
        needs = self.needs_for_count()
        if lacking := sorted(name for name in needs - {"old_logp"} if batch.field(name) is None):
            raise ValueError(
                f"count needs a batch with {', '.join(lacking)}: a part of this estimator sees the whole step"
            )
        terms: dict[str, TermCredit] = {}
        for name in self._kept_last():
            term, own = self.terms[name], credit.terms[name]
            if term.source == "kept":  # by now selections that depend on θ are known
                own = own.within(own.rows & self._rows(name, batch, terms))
            if term.wide() or term.selections_of_theta():
                factors = Factors(term, name, batch, credit, own, reduce=reduce, guards=guards)
                factors.mask()
                own = replace(own, selected=factors.selected(), wide=factors.wide)
            terms[name] = own
        credit = replace(credit, terms={name: terms[name] for name in self.terms})
        shares = {name: self._share(name, batch, credit, reduce, guards) for name in self.terms}
        return replace(credit, terms={name: replace(own, share=shares[name]) for name, own in credit.terms.items()})

    def alive(self, batch: Batch, credit: Credit) -> Tensor:
        """(N,) bool: trajectories that need a forward pass: those that can matter, and what parts see beside them.

        A mask over a prompt's tokens is about those of its trajectories without advantage, too: they are its group.
        Before `count`, parts that see a whole step are about all trajectories of their terms.
        """
        rows = seen_with(credit.nonzero_rows(batch), batch, self.scope)
        for name, term in self.terms.items():
            if term.needs_for_count() and credit.terms[name].share is None:
                rows = rows | credit.terms[name].rows
        return rows

    def weigh(self, batch: Batch, credit: Credit, *, stale: bool = False, guards: Guards | None = None) -> Weighed:
        """The loss of a micro-batch: its gradient is that of −∇J's share, its value is not the published objective.

        Args:
            batch: a micro-batch with `logp`, and `entropy` where a term needs it.
            credit: its credit, counted.
            stale: π_θ has moved since the rollouts, so that `old_logp` must be given to those who read it.
            guards: as for `credit`.
        """
        if guards is None:
            with raising() as guards:
                return self.weigh(batch, credit, stale=stale, guards=guards)
        if batch.logp is None:
            raise ValueError("weigh needs a batch with logp")
        if stale and batch.old_logp is None and "old_logp" in self.needs():
            raise ValueError("after the first optimizer step of a rollout batch π_old is not π_θ: give Batch.old_logp")
        loss = batch.logp.sum() * 0 if batch.logp.numel() == 0 else batch.logp.new_zeros(())
        terms = {}
        for name, term in self.terms.items():
            direction = batch.logp if term.direction == "likelihood" else batch.entropy
            if direction is None:
                raise ValueError(f"the term '{name}' pushes on the entropy, which this batch does not have")
            terms[name] = weights = self._weights(name, batch, credit, guards)
            loss = loss - _dot(weights.weight, direction)
        return Weighed(loss, terms)

    def loss(self, batch: Batch, step: int = 0) -> Tensor:
        """A scalar whose gradient is −∇J for this batch as one whole optimizer step."""
        credit = self.count(batch, self.credit(batch, step))
        return self.weigh(batch, credit).loss

    @torch.no_grad()
    def idle(self, batch: Batch, step: int = 0, *, state: State | None = None, reduce: Reduce = alone) -> Tensor:
        """(G,) bool: prompts whose every coefficient is 0, in all terms; for `rollout.refill`, before credit."""
        state = self.initial() if state is None else state
        with raising() as guards:
            coefficients = self._coefficients(batch, step, state, {}, reduce, guards, weights=False)
        idle = torch.ones(batch.prompts, dtype=torch.bool, device=batch.reward.device)
        sources = {}
        for name in (name for name, term in self.terms.items() if term.keeps):
            rows = self._rows(name, batch, {})
            coefficient = torch.where(rows, coefficients[name], 0)
            sources[name] = TermCredit(coefficient, rows, coefficient != 0, None)
        for name in self.terms:
            weighed = self._rows(name, batch, sources) & (coefficients[name] != 0)
            idle[batch.prompt[weighed]] = False
        return idle

    # The pieces of the phases.

    @torch.no_grad()
    def _weights(self, name: str, batch: Batch, credit: Credit, guards: Guards) -> TermWeights:
        """The product of the factors, term by term: the equation itself."""
        own = credit.terms[name]
        share = _settled(own.share, "count")
        factors = Factors(self.terms[name], name, batch, credit, own, guards=guards)
        mask, ratio, advantage = factors.mask(), factors.ratio(), factors.advantage()

        coefficient = own.coefficient.to(batch.dtype)[batch.trajectory]
        if own.selected is not None:
            coefficient = torch.where(own.selected, coefficient, 0)
        weight = coefficient * share.to(batch.dtype) * mask * ratio * advantage
        if not _finite(weight):  # a factor of 0 wins over an infinite one, and over one that isn't known
            nothing = (coefficient == 0) | (share == 0) | (mask == 0) | (advantage == 0)
            weight = torch.where(nothing, 0, weight)
            given = {"reduction": share, **factors.given}
            guards.flag(weight.isnan().any(), partial(self._nan, name, given, weight.isnan(), batch))
        return TermWeights(coefficient != 0, weight, mask, ratio, advantage)

    def _nan(self, name: str, given: Mapping[str, Tensor], wrong: Tensor, batch: Batch) -> Exception:
        """The error about the first factor that is NaN where a weight is."""
        for place, part in self.terms[name].parts().items():
            if place in given and bool((nan := given[place].isnan() & wrong).any()):
                return returned(part, f"terms.{name}.{place}", about_nan(part, nan, batch))
        return ValueError(f"the term '{name}' has a weight of NaN{first_token(wrong, batch)}: 0 times infinity")

    def _share(self, name: str, batch: Batch, credit: Credit, reduce: Reduce, guards: Guards) -> Tensor:
        """(T,) n: of the tokens that the terms sharing this one's counts select; 0 for the others."""
        sharing = [credit.terms[other] for other in self.counting_with(name)]
        rows, active = (fold(torch.logical_or, x) for x in ([s.rows for s in sharing], [s.active for s in sharing]))
        place, part = f"terms.{name}.reduction", self.terms[name].reduction
        if all(term.selected is None for term in sharing):
            caller = PartCaller(batch, credit.step, rows=rows, active=active, reduce=reduce, guards=guards)
            return caller.factor(part, place, credit.before)
        tokens = fold(torch.logical_or, (term.tokens(batch) for term in sharing))
        there = rows_of(tokens, batch) | (batch.length == 0)  # without a token, nothing of it is left out
        rows, active = rows & there, active & there
        caller = PartCaller(
            batch.of_tokens(tokens), credit.step, rows=rows, active=active, reduce=reduce, guards=guards
        )
        return torch.zeros_like(batch.token_key, dtype=batch.dtype).masked_scatter(
            tokens, caller.factor(part, place, credit.before)
        )

    def _coefficients(
        self,
        batch: Batch,
        step: int,
        state: State,
        after: State,
        reduce: Reduce,
        guards: Guards,
        *,
        weights: bool = True,
    ) -> dict[str, Tensor]:
        """(N,) weight · s for each term, as if every trajectory were of its source; without the weights s alone."""
        ones = torch.ones(batch.size, dtype=batch.dtype, device=batch.reward.device)
        viewer = PartCaller(batch, step, known=before(batch), reduce=reduce, guards=guards)
        coefficients = {}
        for name, term in self.terms.items():
            if not weights:
                coefficients[name] = ones * term.may_weigh(step)
            elif isinstance(term.weight, Weight):
                coefficients[name] = ones * viewer.weight(term.weight, f"terms.{name}.weight", state)
            else:
                coefficients[name] = ones * at(term.weight, step)
        for index, switch in enumerate(self.switch):
            place = f"switch.{index}"
            for name, coefficient in viewer.coefficients(switch, place, state).items():
                spread = coefficient.to(batch.dtype)[batch.prompt]
                coefficients[name] = coefficients[name] * spread
            after[place] = viewer.after(switch, place, state)
        return coefficients

    def _shaped(
        self, batch: Batch, step: int, state: State, after: State, reduce: Reduce, guards: Guards
    ) -> dict[str, Tensor]:
        """The shaping of each token, and the reward with its sum."""
        viewer = PartCaller(batch, step, known=before(batch), reduce=reduce, guards=guards)
        zeros = batch.reward.new_zeros(()).expand(batch.trajectory.shape)
        if not self.shaping:
            return {"shaping": zeros, "reward": batch.reward}
        places = {f"shaping.{index}": part for index, part in enumerate(self.shaping)}
        extra = [viewer.factor(part, place, state) for place, part in places.items()]
        for (place, part), x in zip(places.items(), extra, strict=True):  # a group's statistics would spread its NaN
            guards.flag(x.isnan().any(), partial(_nan_shaping, part, place, x, batch))
        after |= {place: viewer.after(part, place, state) for place, part in places.items()}
        shaping = fold(torch.add, extra, zeros)
        summed = zeros.new_zeros(batch.size).index_add_(0, batch.trajectory, shaping)
        return {"shaping": shaping, "reward": batch.reward + summed}

    def _rows(self, name: str, batch: Batch, terms: Mapping[str, TermCredit]) -> Tensor:
        """(N,) bool: the trajectories of a term's source; `terms` has the credit of those that keep rows."""
        source = self.terms[name].source
        if source == "all":
            return torch.ones_like(batch.demonstration)
        if source == "demonstrations":
            return batch.demonstration
        if source == "rollouts":
            return ~batch.demonstration
        if source == "forced":  # nothing writes into responses but an environment, and there is none yet
            return torch.zeros_like(batch.demonstration)
        kept = (terms[other].kept(batch) for other, term in self.terms.items() if term.keeps)
        return fold(torch.logical_or, kept, torch.zeros_like(batch.demonstration))

    def _kept_last(self) -> list[str]:
        """The terms in an order in which those whose rows others keep come after these."""
        return sorted(self.terms, key=lambda name: self.terms[name].source == "kept")

    def counting_with(self, name: str) -> list[str]:
        """The terms that share the counts of the one called `name`, which is among them."""
        return [other for other in self.terms if self._counts_of(other) == self._counts_of(name)]

    def _counts_of(self, name: str) -> str:
        return self.terms[name].count_with or name


@contextmanager
def raising() -> Iterator[Guards]:
    """Guards that are read at the end."""
    guards = Guards()
    yield guards
    guards.read()


def _nan_shaping(part: Factor, place: str, x: Tensor, batch: Batch) -> Exception:
    return returned(part, place, about_nan(part, x.isnan(), batch))


def reads_trajectories(switch: Switch) -> bool:
    """Whether a switch reads more than fields of prompts, which are known before anything is sampled."""
    return bool(switch.reads() - {named.name for named in named_fields(switch) if named.per == "prompt"})


def _dot(weight: Tensor, direction: Tensor) -> Tensor:
    """Σ_t weight_t · direction_t, in which a weight of 0 wins over an infinite direction."""
    total = torch.dot(weight, direction)
    return total if _finite(total) else torch.where(weight != 0, weight * direction, 0).sum()


def _finite(x: Tensor) -> bool:
    """Whether all numbers are finite, and their sum too: one pass, for the common case that they are.

    False where asking would make the host wait for a device.
    """
    return x.device.type == "cpu" and isfinite(float(x.detach().sum()))


def _place(switch: Switch, term: str) -> tuple[str, ...]:
    """The path of the parameter that names a term."""
    for field, value in switch:
        if value == term or (isinstance(value, tuple) and term in value):
            return (field,)
        if isinstance(value, Mapping) and term in value:
            return (field, term)
    return ()


def _settled(tensor: Tensor | None, phase: str) -> Tensor:
    if tensor is None:
        raise ValueError(f"weigh needs the credit after `{phase}`")
    return tensor
