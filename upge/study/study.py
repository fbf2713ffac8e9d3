"""A study: several estimators in one setting, and in others that differ from it by one number each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from upge.describe.similarity import silent
from upge.errors import InputError
from upge.estimator.estimator import Estimator
from upge.estimator.part_calls import PartError
from upge.study.draws import Setting, draws, sampled
from upge.study.exact import ExactProblem, Kind, World, exact_problem
from upge.study.measurement import Finding, gradients, measure, state_before


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
    """What one recipe gave in one case, measured against ∇J_μ. `varied`: the case's name, None for the centre."""

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
        try:
            found = gradients(estimator, place, case.setting, stale=case.stale > 0, count=case.count, seed=case.seed)
        except PartError as error:
            if faults is None:
                raise
            faults[name] = error
            continue
        for mu in mus:
            yield Row(name, mu, measure(found, place.gradient(mu)))


def remarks(estimators: Mapping[str, Estimator], case: Case) -> Iterator[str]:
    """For each estimator what its numbers don't show: parts that made no difference here, and state at step 0."""
    place = _exact_problem(case.world, case.policy, case.stale, case.rate)
    for name, estimator in estimators.items():
        state = state_before(estimator, place, case.setting, stale=case.stale > 0, seed=case.seed)
        drawn = draws(place, case.setting, _LOOKED_AT, case.seed)
        made = [sampled(place, case.setting, estimator, draw, stale=case.stale > 0).batch for draw in drawn]
        trials = [(batch, case.setting.step, state) for batch in made]
        initial = estimator.initial()
        if never := silent(estimator, trials, ((trial, initial) for trial in trials)):
            yield f"{name}: {' and '.join(never)} made no difference on {_LOOKED_AT} of the batches in the first table"
        if any(initial.values()) and case.setting.step == 0:
            yield f"{name}: carries state, which is the initial one at step 0; --step 16 carries it over 16 batches"


_LOOKED_AT = 20
"""Batches on which it is found out which parts act."""


@lru_cache(maxsize=32)
def _exact_problem(world: World, policy: Kind, stale: int, rate: float) -> ExactProblem:
    return exact_problem(world, policy, stale=stale, rate=rate)
