"""How alike two estimators are: under which conditions they have one gradient, and how far apart they are otherwise.

Everything here is measured on seeded synthetic batches in float64 (`upge.describe.synthetic`): evidence, where a
property test is a proof. If a part had no effect on the batches, the comparison is inconclusive.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from upge.describe.synthetic import LONGEST, ON_POLICY, Conditions, combinations, histories, made, probes, turns
from upge.estimator.batch import Batch
from upge.estimator.estimator import Estimator
from upge.estimator.part_calls import PartCaller
from upge.estimator.view import View
from upge.part import Part, State, Stateful
from upge.part_checks import Per
from upge.session_results import LARGEST
from upge.testing.batches import PER_TOKEN, RICH, Case, Prompt, kinds_of, with_fields

Trial = tuple[Batch, int, State]
"""A rollout batch, its step, and the state that is there before it."""


def silent(estimator: Estimator, trials: Sequence[Trial], carried: Iterable[tuple[Trial, State]]) -> tuple[str, ...]:
    """The places of switches, shapings and masks that gave one number wherever they counted, though they can give
    others, and of states that made no difference: `carried` has trials with state, beside the initial one."""
    seen: dict[str, set[float]] = {}
    for batch, step, state in trials:
        for place, numbers in _numbers(estimator, batch, step, state):
            if len(known := seen.setdefault(place, set())) < 2:
                known.update(torch.unique(numbers)[:2].tolist())
    parts = estimator.parts()
    constant = [place for place, known in seen.items() if len(known) < 2 and _can_act(parts[_part_of(place)])]
    pairs = list(carried)
    stuck = [
        f"{place}'s state"
        for place, state in estimator.initial().items()
        if state and not any(_state_counts(estimator, place, trial, before) for trial, before in pairs)
    ]
    return tuple(dict.fromkeys([*map(_part_of, constant), *stuck]))


def _part_of(place: str) -> str:
    """The place of a part, without the term that a switch's numbers are for."""
    return place.partition(":")[0]


def _numbers(estimator: Estimator, batch: Batch, step: int, state: State) -> Iterator[tuple[str, Tensor]]:
    """The result of each switch, shaping and mask, by place; a mask's only where its term's weight isn't 0."""
    viewer = PartCaller(batch, step)
    for index, switch in enumerate(estimator.switch):
        place = f"switch.{index}"
        for name, coefficient in viewer.coefficients(switch, place, state).items():
            yield f"{place}:{name}", coefficient
    for index, shaping in enumerate(estimator.shaping):
        yield f"shaping.{index}", viewer.factor(shaping, f"shaping.{index}", state)
    credit = estimator.count(batch, estimator.credit(batch, step, state=state))
    weighed = estimator.weigh(batch, credit)
    for name, term in estimator.terms.items():
        term_credit, weights = credit.terms[name], weighed.terms[name]
        shaped = {"reward": credit.reward, "shaping": credit.shaping}
        view = PartCaller(batch, step, rows=term_credit.rows, active=term_credit.active, known=shaped)
        view.known |= {"advantage": weights.advantage, "ratio": weights.ratio}
        view.known["mask"] = mask = torch.ones_like(weights.ratio)
        counts = weights.active & (weights.advantage != 0)
        for index, part in enumerate(term.mask):
            numbers = view.factor(part, f"terms.{name}.mask.{index}", credit.before)
            view.known["mask"] = mask = mask * numbers
            yield f"terms.{name}.mask.{index}", numbers[counts]


def _state_counts(estimator: Estimator, place: str, trial: Trial, before: State) -> bool:
    """Whether the weights change with the state of one part."""
    batch, step, carried = trial
    one = weights(estimator, batch, step, before)
    return not torch.equal(one, weights(estimator, batch, step, before | {place: carried[place]}))


def weights(estimator: Estimator, batch: Batch, step: int, state: State | None = None) -> Tensor:
    """(2T,) ∇J with respect to logp and to entropy: the weights of the terms that push on either."""
    weighed = estimator.weigh(batch, estimator.count(batch, estimator.credit(batch, step, state=state)))
    total = {kind: torch.zeros(batch.trajectory.shape, dtype=batch.dtype) for kind in ("likelihood", "entropy")}
    for name, term in weighed.terms.items():
        kind = estimator.terms[name].direction
        total[kind] = total[kind] + term.weight
    return torch.cat([total["likelihood"], total["entropy"]])


# Whether a part could act at all: it is called on numbers that no batch has.

_EXTREMES = (-LARGEST, -1e9, -20.0, -1e-9, 0.0, 1e-9, 0.5, 1.0, 20.0, 1e9, LARGEST)
_STEPS = (0, 1, 10, 100, 1000, 10**6)


def _can_act(part: Part) -> bool:
    """Whether any numbers in the fields, any step, and any length or group make a part give others than it gave."""
    seen: dict[str, set[float]] = {}
    state = part.initial() if isinstance(part, Stateful) else None
    kinds = kinds_of([part])
    for batch, known in _extremes():
        for step in _STEPS:
            view = View(with_fields(batch, kinds), part.reads(), known=known, step=step, state=state)
            try:
                result: Any = part(view)  # type: ignore[operator]
            except Exception:  # numbers that it never meets; whatever it does with them, it looks at them
                return True
            for name, numbers in result.items() if isinstance(result, dict) else [("", result)]:
                known_of = seen.setdefault(name, set())
                known_of.update(torch.unique(numbers.to(batch.dtype))[:2].tolist())
                if len(known_of) > 1:
                    return True
    return False


@functools.cache
def _extremes() -> tuple[tuple[Batch, dict[str, Tensor]], ...]:
    """Batches of extreme numbers: small ones, a group of thousands, a response of tens of thousands of tokens."""
    random = torch.Generator().manual_seed(3)
    values = torch.tensor(_EXTREMES, dtype=torch.float64)

    def drawn(shape: torch.Size) -> Tensor:
        return values[torch.randint(0, len(values), shape, generator=random)]

    extremes = []
    many = Case((Prompt(2000, 1),), longest=1)
    long = Case((Prompt(1, 1),), longest=50_000, shortest=50_000)
    for batch in (*(RICH.batch for _ in range(8)), many.batch, long.batch):
        per_token: dict[str, Any] = {name: drawn(batch.trajectory.shape) for name in PER_TOKEN}
        known = {name: drawn(batch.trajectory.shape) for name in ("advantage", "ratio", "mask", "shaping")}
        extremes.append((replace(batch, reward=drawn(batch.reward.shape), **per_token), known))
    return tuple(extremes)


@dataclass(frozen=True)
class Likeness:
    """An estimator has `factor` times the gradient of the one called `other` under all of `conditions`.

    Attributes:
        factors: the least and the greatest factor, where that moves with the step.
        when: the steps of which that is true, in words; "" for all that were tried.
    """

    other: str
    conditions: tuple[str, ...]
    factors: tuple[float, float]
    when: str = ""

    def __str__(self) -> str:
        low, high = (f"{factor:.4g}" for factor in self.factors)
        factor = low if low == high else f"{low} to {high}"
        times = "" if factor == "1" else f"{factor} times "
        where = f", where {' and '.join(self.conditions)}" if self.conditions else ""
        moving = "" if low == high else ", a factor that moves with the step"
        return f"{times}{self.other}{where}" + (f", {self.when}" if self.when else "") + moving


@dataclass(frozen=True)
class Distance:
    """Two gradients: their norms, and the cosine of the angle between them (NaN where one of them is 0)."""

    batch: str
    norms: tuple[float, float]
    cosine: float


def alike(
    estimator: Estimator, others: Mapping[str, Estimator], *, steps: Sequence[int] = (0,), longest: int = LONGEST
) -> list[Likeness]:
    """Which of `others` an estimator has a positive multiple of the gradient of, and the fewest conditions for it.

    An estimator with a part without effect is left out: `Subject.silent` names the part.
    """
    ours = Subject(estimator, tuple(steps), longest)
    return alike_subjects(ours, {name: Subject(other, tuple(steps), longest) for name, other in others.items()})


def alike_subjects(ours: Subject, others: Mapping[str, Subject]) -> list[Likeness]:
    """As `alike`."""
    if ours.silent:
        return []
    distances: dict[tuple[str, Conditions], dict[tuple[int, ...], float]] = {}
    for conditions in combinations():
        for name, theirs in others.items():
            if not _may_agree(ours, theirs, conditions):
                continue
            for steps in _kinds(ours, theirs):
                known = [its for (other, its), held in distances.items() if other == name and steps in held]
                if any(set(its) <= set(conditions) for its in known):
                    continue  # fewer conditions do
                factor = _factor(ours, theirs, conditions, steps)
                if factor is not None and not theirs.silent:
                    distances.setdefault((name, conditions), {})[steps] = factor
    return [_likeness(name, conditions, held, ours.steps) for (name, conditions), held in distances.items()]


def apart(one: Estimator, other: Estimator, *, steps: Sequence[int] = (0,), longest: int = LONGEST) -> list[Distance]:
    """How far two estimators are apart: on a batch in which everything happens, on the same one on-policy, and on
    whichever of all batches, steps and carried states the difference is greatest relative to the gradients."""
    a, b = (Subject(estimator, tuple(steps), longest) for estimator in (one, other))
    return apart_subjects(a, b)


def apart_subjects(a: Subject, b: Subject) -> list[Distance]:
    """As `apart`."""
    distances = [_distance(label, *_pair(a, b, its, (0, 0, 0))) for label, its in _POLICIES.items()]
    trials = [
        (label, its, trial)
        for label, its in _POLICIES.items()
        for steps in _kinds(a, b)
        for trial in _trials(a, b, steps)
    ]
    label, its, (index, step, history) = max(trials, key=lambda trial: _difference(*_pair(a, b, *trial[1:])))
    carried = ", state carried" if history else ""
    where = f"{label}, where they differ most (step {step}{carried})"
    return [*distances, _distance(where, *_pair(a, b, its, (index, step, history)))]


_POLICIES: dict[str, Conditions] = {"off-policy": (), "on-policy": (ON_POLICY,)}


def _pair(a: Subject, b: Subject, conditions: Conditions, trial: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    return a.gradient(conditions, *trial), b.gradient(conditions, *trial)


def _difference(a: Tensor, b: Tensor) -> float:
    """‖a − b‖ over the greater of their norms; 0 where both are 0."""
    return float((a - b).norm()) / max(float(a.norm()), float(b.norm()), 1e-300)


def gradient(estimator: Estimator, batch: Batch, step: int = 0) -> Tensor:
    """(2T,) ∇J with respect to logp and to entropy, end to end."""
    return weights(estimator, batch, step)


class Subject:
    """An estimator on all the probes, steps and histories; what was computed once is kept.

    Attributes:
        steps: those that are tried, ascending. longest: tokens of the longest trajectory.
        located: what gives the error of a part its place in the recipe.
    """

    def __init__(
        self,
        estimator: Estimator,
        steps: tuple[int, ...] = (0,),
        longest: int = LONGEST,
        located: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.estimator, self.steps, self.longest, self.located = estimator, steps, longest, located
        self._gradients: dict[tuple[Conditions, int, int, int], Tensor] = {}
        self._states: dict[tuple[Conditions, int], State] = {}

    def given(self, batch: Batch) -> Batch:
        """The batch with the fields that the estimator's parts read by name."""
        return with_fields(batch, self._kinds) if self._kinds else batch

    @functools.cached_property
    def _kinds(self) -> dict[str, Per]:
        return kinds_of(self.estimator.parts().values())

    @functools.cached_property
    def stateful(self) -> bool:
        """Whether anything is carried from one rollout batch to the next."""
        return any(self.estimator.initial().values())

    @functools.cached_property
    def still(self) -> bool:
        """Whether no schedule or switch names a step, and the first and the last step have the same gradients."""
        ends = (self.steps[0], self.steps[-1])
        return not turns(self.estimator) and all(
            torch.equal(*(self.gradient((), index, step, 0) for step in ends)) for index in (0, 3)
        )

    @functools.cached_property
    def kinds(self) -> dict[int, bytes]:
        """For each step what the gradients are there: equal for steps between which nothing has moved."""
        return {step: b"".join(map(bytes, self._sampled(step))) for step in self.steps}

    @functools.cached_property
    def silent(self) -> tuple[str, ...]:
        """The parts that made no difference on any probe, at any step, in any state, though they can."""
        indexes = range(len(probes(self.longest)))
        pairs = [(index, self.steps[index % len(self.steps)]) for index in indexes]
        if len(set(self.kinds.values())) > 1:
            pairs += [(index, step) for index in (0, 3) for step in self.steps]
        initial = self.estimator.initial()
        trials: list[Trial] = [(self.given(probes(self.longest)[index]), step, initial) for index, step in pairs]
        carried: list[Trial] = []
        if self.stateful:
            states = [self.state((), history) for history in range(1, len(histories()))]
            carried = [(batch, step, state) for state in states for batch, step, _ in trials]
        with self.located():
            return silent(self.estimator, [*trials, *carried], ((trial, initial) for trial in carried))

    def gradient(self, conditions: Conditions, index: int, step: int, history: int) -> Tensor:
        """(2T,) of a probe under the conditions, with the state that a history of such batches left."""
        key = (conditions, index, step, history if self.stateful else 0)
        if key not in self._gradients:
            batch = self.given(_batch(conditions, index, self.longest))
            with self.located():
                self._gradients[key] = weights(self.estimator, batch, step, self.state(conditions, history))
        return self._gradients[key]

    def state(self, conditions: Conditions, history: int) -> State:
        """The state after a history, whose batches have the steps from 0 on."""
        if not (history and self.stateful):
            return self.estimator.initial()
        if (conditions, history) not in self._states:
            state = self.estimator.initial()
            with self.located():
                for step, batch in enumerate(histories()[history]):
                    state = self.estimator.credit(self.given(made(batch, conditions)), step, state=state).state
            self._states[conditions, history] = state
        return self._states[conditions, history]

    def _sampled(self, step: int) -> Iterator[bytes]:
        for index in (0, 3, len(probes(self.longest)) - 1):
            yield self.gradient((), index, step, 0).numpy().tobytes()


@functools.lru_cache(maxsize=512)
def _batch(conditions: Conditions, index: int, longest: int) -> Batch:
    return made(probes(longest)[index], conditions)


def _kinds(ours: Subject, theirs: Subject) -> list[tuple[int, ...]]:
    """The steps, those together at which neither estimator has moved."""
    kinds: dict[tuple[bytes, bytes], list[int]] = {}
    for step in ours.steps:
        kinds.setdefault((ours.kinds[step], theirs.kinds[step]), []).append(step)
    return [tuple(steps) for steps in kinds.values()]


def _trials(ours: Subject, theirs: Subject, steps: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(probe, step, history): every probe at some step; in every state, where one of the two carries any."""
    for history in range(len(histories()) if ours.stateful or theirs.stateful else 1):
        for index in range(len(probes(ours.longest))):
            yield index, steps[index % len(steps)], history


def _may_agree(ours: Subject, theirs: Subject, conditions: Conditions) -> bool:
    """Whether the smallest probe allows a factor at any step: most pairs fail there, and need no long probe.

    For two that stand still, the first step stands for all.
    """
    return any(
        _agrees(ours.gradient(conditions, 0, step, 0), theirs.gradient(conditions, 0, step, 0), None)[0]
        for step in (ours.steps[:1] if ours.still and theirs.still else ours.steps)
    )


def _agrees(mine: Tensor, other: Tensor, factor: float | None) -> tuple[bool, float | None]:
    """Whether `mine` is `factor` times `other`, and the factor, which the first gradient other than 0 decides."""
    if factor is None and bool(other.any()):
        factor = float(mine @ other) / float(other @ other)
        if not factor > 0:
            return False, None
    return torch.allclose(mine, other * (1.0 if factor is None else factor), rtol=1e-9, atol=1e-12), factor


def _factor(ours: Subject, theirs: Subject, conditions: Conditions, steps: tuple[int, ...]) -> float | None:
    """The one positive factor by which our gradients are theirs in every trial; None if there is none."""
    factor: float | None = None
    for index, step, history in _trials(ours, theirs, steps):
        mine = ours.gradient(conditions, index, step, history)
        other = theirs.gradient(conditions, index, step, history)
        agree, factor = _agrees(mine, other, factor)
        if not agree:
            return None
    return factor


def _likeness(
    name: str, conditions: Conditions, held: Mapping[tuple[int, ...], float], steps: Sequence[int]
) -> Likeness:
    factors = held.values()
    when = _when(sorted(step for some in held for step in some), steps)
    return Likeness(name, tuple(condition.words for condition in conditions), (min(factors), max(factors)), when)


def _when(held: Sequence[int], steps: Sequence[int]) -> str:
    """Some of the steps that were tried, in words."""
    if len(held) == len(steps):
        return ""
    first, last = steps.index(held[0]), steps.index(held[-1])
    if last - first + 1 != len(held):
        return f"at steps {', '.join(map(str, held))}"
    if first == 0:
        return "at step 0" if last == 0 else f"up to step {held[-1]}"
    if held[-1] == steps[-1]:
        return f"from step {held[0]} on"
    return f"at step {held[0]}" if first == last else f"at steps {held[0]} to {held[-1]}"


def _distance(label: str, a: Tensor, b: Tensor) -> Distance:
    norms = (float(a.norm()), float(b.norm()))
    return Distance(label, norms, float(a @ b) / (norms[0] * norms[1]) if all(norms) else math.nan)
