"""Which parts of an estimator made a difference on the synthetic batches: what never acted, nothing can be said of."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from upge.asking import State, Viewer
from upge.batch import Batch, View
from upge.estimator import Estimator
from upge.parts import Part, Stateful
from upge.score import LARGEST
from upge.testing.batches import PER_TOKEN, RICH, Case, Prompt

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
    """What each switch, shaping and mask gives, by place; a mask's where its term has other weight than 0."""
    viewer = Viewer(batch, step)
    for index, switch in enumerate(estimator.switch):
        place = f"switch.{index}"
        for name, coefficient in viewer.coefficients(switch, place, state).items():
            yield f"{place}:{name}", coefficient
    for index, shaping in enumerate(estimator.shaping):
        yield f"shaping.{index}", viewer.factor(shaping, f"shaping.{index}")
    credit = estimator.count(batch, estimator.credit(batch, step, state=state))
    weighed = estimator.weigh(batch, credit)
    for name, term in estimator.terms.items():
        own, weights = credit.terms[name], weighed.terms[name]
        shaped = {"reward": credit.reward, "shaping": credit.shaping}
        view = Viewer(batch, step, rows=own.rows, active=own.active, known=shaped)
        view.known |= {"advantage": weights.advantage, "ratio": weights.ratio}
        view.known["mask"] = mask = torch.ones_like(weights.ratio)
        counts = weights.active & (weights.advantage != 0)
        for index, part in enumerate(term.mask):
            numbers = view.factor(part, f"terms.{name}.mask.{index}")
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
    for batch, known in _extremes():
        for step in _STEPS:
            view = View(batch, part.reads(), known=known, step=step, state=state)
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

    found = []
    many = Case((Prompt(2000, 1),), longest=1)
    long = Case((Prompt(1, 1),), longest=50_000, shortest=50_000)
    for batch in (*(RICH.batch for _ in range(8)), many.batch, long.batch):
        per_token: dict[str, Any] = {name: drawn(batch.trajectory.shape) for name in PER_TOKEN}
        known = {name: drawn(batch.trajectory.shape) for name in ("advantage", "ratio", "mask", "shaping")}
        found.append((replace(batch, reward=drawn(batch.reward.shape), **per_token), known))
    return tuple(found)
