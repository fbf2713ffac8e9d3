"""A study: bias, variance and cosine of several estimators, in one setting and in others that differ by one number.

With g what the estimator makes of a batch and a = ⟨E g, ∇J⟩/‖∇J‖² its scale, which no learning rate cares about:

    bias      ‖E g/a − ∇J‖ / ‖∇J‖            variance   E‖g/a − E g/a‖² / ‖∇J‖²
    error²    bias² + variance               cosine     E[⟨g, ∇J⟩ / (‖g‖·‖∇J‖)],  0 where g = 0

All dimensionless. They are exact where every batch can be gone through, else Monte Carlo estimates with 95 % intervals
by the jackknife over 20 blocks of draws; the squared bias is estimated without the share that variance adds to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor

from upge.describe.similarity import silent
from upge.errors import InputError
from upge.estimator.estimator import Estimator
from upge.estimator.part_errors import PartError
from upge.part import State
from upge.part_checks import ATTRIBUTES
from upge.study.exact import Draw, ExactProblem, Kind, Setting, World, draws, exact_problem, outcomes, sampled
from upge.tables import fixed

BLOCKS, QUANTILE = 20, 2.093
"""Of Student's t with 19 degrees of freedom, 97.5 %."""


@dataclass(frozen=True)
class Number:
    """A value and its 95 % interval, which is the value alone where that is exact."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        """The value, and its interval if that is not the value itself."""
        if self.low == self.high:
            return fixed(self.value)
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Finding:
    """The numbers of one estimator in one setting; see the module. `exact`: computed without sampling."""

    scale: Number
    bias: Number
    variance: Number
    error: Number
    cosine: Number
    exact: bool


@dataclass(frozen=True)
class Gradients:
    """An estimator's gradients of M batches.

    Attributes:
        g: (M, P). chance: (M,) the batches' probabilities where they are all there are; None for draws.
    """

    g: Tensor
    chance: Tensor | None = None


def gradients(
    estimator: Estimator,
    problem: ExactProblem,
    setting: Setting,
    *,
    stale: bool = False,
    count: int = 400,
    seed: int = 0,
) -> Gradients:
    """All batches' gradients where they can be gone through, else of `count` draws, rounded up to whole blocks.

    Parts have the state that the rollout batches before `setting.step` leave, one draw of them.
    """
    state = state_before(estimator, problem, setting, stale=stale, seed=seed)
    listed = outcomes(problem, setting)
    if listed is not None:
        rows = [_weights(estimator, problem, setting, draw, state, stale=stale) for _, draw in listed]
        chance = torch.tensor([chance for chance, _ in listed], dtype=torch.float64)
    else:
        count = -(-count // BLOCKS) * BLOCKS
        drawn = draws(problem, setting, count, seed)
        rows = [_weights(estimator, problem, setting, draw, state, stale=stale) for draw in drawn]
        chance = None
    likelihood, entropy = (torch.stack(column) for column in zip(*rows, strict=True))
    return Gradients(likelihood @ problem.score + entropy @ problem.pull, chance)


def measure(batches: Gradients, exact: Tensor) -> Finding:
    """The finding, against the exact gradient (P,)."""
    if batches.chance is not None:
        scale, bias, variance, error, cosine = (
            Number(value, value, value) for value in _numbers(*_moments(batches.g, exact, batches.chance), exact)
        )
    else:
        scale, bias, variance, error, cosine = _jackknifed(batches.g, exact)
    return Finding(scale, _root(bias), variance, error, cosine, exact=batches.chance is not None)


def state_before(estimator: Estimator, problem: ExactProblem, setting: Setting, *, stale: bool, seed: int) -> State:
    """The state that the rollout batches before `setting.step` leave; the initial one at step 0, or without any."""
    state = estimator.initial()
    if any(state.values()):
        earlier = draws(problem, setting, setting.step, seed + 1)
        for step, draw in enumerate(earlier):
            batch = sampled(problem, replace(setting, step=step), estimator, draw, stale=stale).batch
            state = estimator.credit(batch, step, state=state).state
    return state


def _weights(
    estimator: Estimator, problem: ExactProblem, setting: Setting, draw: Draw, state: State, *, stale: bool
) -> tuple[Tensor, Tensor]:
    """(G·S·L,) the weight of every place's ∇log π, and of its ∇H, in the gradient of one batch."""
    made = sampled(problem, setting, estimator, draw, stale=stale)
    credit = estimator.count(made.batch, estimator.credit(made.batch, setting.step, state=state))
    weighed = estimator.weigh(made.batch, credit, stale=stale)
    totals = {"likelihood": torch.zeros(len(problem.score), dtype=torch.float64)}
    totals["entropy"] = torch.zeros_like(totals["likelihood"])
    for name, term in weighed.terms.items():
        totals[estimator.terms[name].direction].index_add_(0, made.place, term.weight)
    return totals["likelihood"], totals["entropy"]


def _moments(g: Tensor, exact: Tensor, chance: Tensor) -> tuple[float, float, float, float]:
    """⟨E g, û⟩, ‖E g across û‖², tr Cov g and the mean cosine, û = ∇J/‖∇J‖, under the probabilities given."""
    unit = exact / exact.norm()
    mean = chance @ g
    along = float(mean @ unit)
    across = float((mean - along * unit).square().sum())
    spread = float(chance @ (g - mean).square().sum(1))
    return along, across, spread, float(chance @ _cosines(g, unit))


def _jackknifed(g: Tensor, exact: Tensor) -> list[Number]:
    """Estimates from all draws, with intervals from what leaving out a block at a time does to them."""
    blocks = g.view(BLOCKS, -1, g.shape[1])
    whole = _estimates(g, exact)
    without = torch.stack(
        [_estimates(torch.cat([blocks[:index], blocks[index + 1 :]]).flatten(0, 1), exact) for index in range(BLOCKS)]
    )
    wide = ((BLOCKS - 1) / BLOCKS * (without - without.mean(0)).square().sum(0)).sqrt() * QUANTILE
    return [Number(v, v - w, v + w) for v, w in zip(whole.tolist(), wide.tolist(), strict=True)]


def _estimates(g: Tensor, exact: Tensor) -> Tensor:
    """The same from (M, P) draws, without bias of their own."""
    unit, count = exact / exact.norm(), len(g)
    mean = g.mean(0)
    sideways = g - (g @ unit)[:, None] * unit
    # The square of a mean has the draws' variance in it: only products of different draws are taken.
    across = float(sideways.sum(0).square().sum() - sideways.square().sum()) / (count * (count - 1))
    spread = float((g - mean).square().sum()) / (count - 1)
    return torch.tensor(_numbers(float(mean @ unit), across, spread, float(_cosines(g, unit).mean()), exact))


def _numbers(along: float, across: float, spread: float, cosine: float, exact: Tensor) -> tuple[float, ...]:
    """Scale, squared bias, variance, squared error and cosine."""
    if along == 0:
        return 0.0, math.inf, math.inf, math.inf, cosine
    square = along**2
    return along / float(exact.norm()), across / square, spread / square, (across + spread) / square, cosine


def _cosines(g: Tensor, unit: Tensor) -> Tensor:
    norm = g.norm(dim=1)
    return torch.where(norm > 0, (g @ unit) / norm.clamp(min=1e-300), 0.0)


def _root(square: Number) -> Number:
    """The root of a number whose estimate may be below 0."""
    return Number(*(math.sqrt(max(0.0, number)) for number in (square.value, square.low, square.high)))


@dataclass(frozen=True)
class Case:
    """One setting of everything.

    Attributes:
        world: its success rates among them. setting: prompts and rollouts of a batch. stale: updates since π_old.
        policy: what kind. rate: how far an update goes. count: draws where not all batches can be gone through.
    """

    world: World = field(default_factory=World)
    setting: Setting = field(default_factory=Setting)
    stale: int = 0
    policy: Kind = "table"
    rate: float = 1.0
    count: int = 200
    seed: int = 0

    def varied(self, what: str, value: float) -> Case:
        """This case with one number in place of its own; `success` is that of every prompt."""
        if what == "stale":
            return replace(self, stale=int(value))
        if what == "success":
            return replace(self, world=replace(self.world, success=(value,) * self.world.prompts))
        return replace(self, setting=replace(self.setting, **{what: int(value)}))


SWEEPS: Mapping[str, Sequence[float]] = {
    "prompts": (1, 4, 16),
    "n": (2, 4, 8, 16),
    "stale": (0, 4, 16, 64),
    "success": (0.02, 0.1, 0.3, 0.5, 0.9),
}
"""What is varied, and through which values."""


@dataclass(frozen=True)
class Row:
    """The result of one recipe in one case, compared with ∇J_μ. `varied`: the case's name, None for the centre."""

    recipe: str
    mu: float
    finding: Finding
    varied: str | None = None
    value: float | None = None


PROVIDED = frozenset({"logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value", "reward", "truncated"})
"""Everything that a part may read is known here: the critic is perfect, and the engine's log-probs are the policy's."""


def study(
    estimators: Mapping[str, Estimator],
    case: Case,
    mus: Sequence[float],
    sweeps: Mapping[str, Sequence[float]] = SWEEPS,
    faults: dict[str, PartError] | None = None,
) -> Iterator[Row]:
    """A row for each recipe and μ in the centre, then for each value of each sweep.

    Args: faults: is filled with the errors of parts, by recipe, whose rows then end; None: such an error is raised.
    """
    yield from _rows(estimators, case, mus, faults)
    for what, values in sweeps.items():
        for value in values:
            for row in _rows(estimators, case.varied(what, value), mus, faults):
                yield replace(row, varied=what, value=value)


def _rows(
    estimators: Mapping[str, Estimator], case: Case, mus: Sequence[float], faults: dict[str, PartError] | None
) -> Iterator[Row]:
    try:
        place = _exact_problem(case.world, case.policy, case.stale, case.rate)
    except ValueError as error:
        raise InputError(f"study: {error}") from error
    for name, estimator in estimators.items():
        if faults and name in faults:
            continue
        if unknown := sorted(estimator.needs() - ATTRIBUTES.keys()):
            world = "the study draws from tables, without models, data or tokens"
            raise InputError(f"study: {name} reads the field '{unknown[0]}', and here is none: {world}")
        try:
            batch_gradients = gradients(
                estimator, place, case.setting, stale=case.stale > 0, count=case.count, seed=case.seed
            )
        except PartError as error:
            if faults is None:
                raise
            faults[name] = error
            continue
        for mu in mus:
            yield Row(name, mu, measure(batch_gradients, place.gradient(mu)))


def remarks(estimators: Mapping[str, Estimator], case: Case) -> Iterator[str]:
    """For each estimator what its numbers don't show: parts that made no difference here, and state at step 0."""
    place = _exact_problem(case.world, case.policy, case.stale, case.rate)
    for name, estimator in estimators.items():
        state = state_before(estimator, place, case.setting, stale=case.stale > 0, seed=case.seed)
        drawn = draws(place, case.setting, _EXAMINED, case.seed)
        made = [sampled(place, case.setting, estimator, draw, stale=case.stale > 0).batch for draw in drawn]
        trials = [(batch, case.setting.step, state) for batch in made]
        initial = estimator.initial()
        if never := silent(estimator, trials, ((trial, initial) for trial in trials)):
            yield f"{name}: {' and '.join(never)} made no difference on {_EXAMINED} of the batches in the first table"
        if any(initial.values()) and case.setting.step == 0:
            yield f"{name}: carries state, which is the initial one at step 0; --step 16 carries it over 16 batches"


_EXAMINED = 20
"""Batches on which it is found out which parts act."""


@lru_cache(maxsize=32)
def _exact_problem(world: World, policy: Kind, stale: int, rate: float) -> ExactProblem:
    return exact_problem(world, policy, stale=stale, rate=rate)
