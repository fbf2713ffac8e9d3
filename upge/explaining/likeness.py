"""How alike two estimators are: under which conditions they have one gradient, and how far apart they are otherwise.

Everything here is measured on seeded synthetic batches in float64: evidence, where a property test is a proof.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from upge.batch import Batch
from upge.estimator import Estimator
from upge.testing.batches import RICH, Case, Prompt, fresh, seeded

LONGEST = 200
"""Tokens of the longest trajectories: what only happens beyond them, at a soft limit of thousands say, is not seen."""


@dataclass(frozen=True)
class Condition:
    """What a batch is like, in words, and what makes any batch so."""

    words: str
    make: Callable[[Batch], Batch]


@dataclass(frozen=True)
class Likeness:
    """An estimator has `factor` times the gradient of the one called `other` under all of `conditions`."""

    other: str
    conditions: tuple[str, ...]
    factor: float

    def __str__(self) -> str:
        times = "" if abs(self.factor - 1) < 1e-9 else f"{self.factor:.4g} times "
        return f"{times}{self.other}" + (f", where {' and '.join(self.conditions)}" if self.conditions else "")


@dataclass(frozen=True)
class Distance:
    """Two gradients: their norms, and the cosine of the angle between them (NaN where one of them is 0)."""

    batch: str
    norms: tuple[float, float]
    cosine: float


def _explored(batch: Batch) -> Batch:
    explored = torch.zeros(batch.prompts, dtype=torch.bool)
    explored[batch.prompt[~batch.demonstration]] = True
    kept = batch.select(explored[batch.prompt])
    return replace(kept, reward=kept.reward.abs() + 0.125)


def _one_token(batch: Batch) -> Batch:
    first = batch.position == 0
    names = ("logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value", "trajectory")
    tensors = {name: getattr(batch, name) for name in names}
    picked: dict[str, Any] = {name: None if x is None else x[first] for name, x in tensors.items()}
    return replace(batch, **picked)


def _on_policy(batch: Batch) -> Batch:
    return replace(batch, old_logp=None)


ON_POLICY = Condition("π_old is π_θ (on-policy)", _on_policy)
ONE_TOKEN = Condition("every trajectory is one token", _one_token)
CONDITIONS = (
    ON_POLICY,
    ONE_TOKEN,
    Condition("every rollout is rewarded", _explored),
    Condition("no rollout is rewarded", lambda b: replace(b, reward=torch.where(b.demonstration, b.reward, 0))),
    Condition("there are no demonstrations", lambda b: b.select(~b.demonstration)),
    Condition("π_θ is the reference", lambda b: replace(b, reference_logp=b.logp)),
    Condition(
        "the engine's log-probs are the trainer's",
        lambda b: replace(b, rollout_logp=b.logp if b.old_logp is None else b.old_logp),
    ),
    Condition("V ≡ 0", lambda b: replace(b, value=torch.zeros_like(b.reward)[b.trajectory])),
)


def alike(estimator: Estimator, others: Mapping[str, Estimator], *, step: int = 0) -> list[Likeness]:
    """Which of `others` an estimator has a positive multiple of the gradient of, and the fewest conditions for it."""
    found: list[Likeness] = []
    for conditions in _combinations():
        batches = [_made(batch, conditions) for batch in _batches()]
        ours = [gradient(estimator, batch, step) for batch in batches]
        if all(not bool(each.any()) for each in ours):
            continue
        words = {condition.words for condition in conditions}
        for name, other in others.items():
            known = any(each.other == name and set(each.conditions) <= words for each in found)
            if not known and (factor := _factor(ours, other, batches, step)) is not None:
                found.append(Likeness(name, tuple(condition.words for condition in conditions), factor))
    return found


def apart(one: Estimator, other: Estimator, *, step: int = 0) -> list[Distance]:
    """How far two estimators are apart, on a batch in which everything happens and on the same one on-policy."""
    distances = []
    for name, batch in (("off-policy", RICH.batch), ("on-policy", _on_policy(RICH.batch))):
        a, b = (gradient(each, batch, step) for each in (one, other))
        norms = (float(a.norm()), float(b.norm()))
        cosine = float(a @ b) / (norms[0] * norms[1]) if all(norms) else float("nan")
        distances.append(Distance(name, norms, cosine))
    return distances


def gradient(estimator: Estimator, batch: Batch, step: int = 0) -> Tensor:
    """(2T,) ∇J with respect to logp and to entropy, end to end."""
    leaf = fresh(batch)
    assert leaf.logp is not None
    assert leaf.entropy is not None
    found = torch.autograd.grad(estimator.loss(leaf, step), [leaf.logp, leaf.entropy], allow_unused=True)
    leaves = (leaf.logp, leaf.entropy)
    return torch.cat([torch.zeros_like(x) if g is None else -g for g, x in zip(found, leaves, strict=True)])


def _combinations() -> Iterator[tuple[Condition, ...]]:
    """None, each by itself, and each together with being on-policy or of one token."""
    yield ()
    yield from ((condition,) for condition in CONDITIONS)
    for first in (ON_POLICY, ONE_TOKEN):
        yield from ((first, second) for second in CONDITIONS if second not in (ON_POLICY, ONE_TOKEN))
    yield (ON_POLICY, ONE_TOKEN)


def _batches() -> list[Batch]:
    """One in which everything happens, one with long trajectories, and ones whose ratios reach any usual bound."""
    long = Case((Prompt(3, 1), Prompt(2, 1, "wild"), Prompt(2, 0, "right")), "near", LONGEST, seed=21)
    drawn = [*seeded(4)[-2:], long]
    return [RICH.batch, *(_with_a_far_engine(case.batch) for case in drawn)]


def _with_a_far_engine(batch: Batch) -> Batch:
    """The batch with an engine whose log-probs are up to 3 nats away from the trainer's."""
    random = torch.Generator().manual_seed(5)
    assert batch.logp is not None
    away = 6 * torch.rand(batch.logp.shape, generator=random, dtype=batch.dtype) - 3
    return replace(batch, rollout_logp=(batch.logp + away).clamp(max=-1e-3))


def _made(batch: Batch, conditions: tuple[Condition, ...]) -> Batch:
    for condition in conditions:
        batch = condition.make(batch)
    return batch


def _factor(ours: list[Tensor], other: Estimator, batches: list[Batch], step: int) -> float | None:
    """The one positive factor by which all of `ours` are the other's gradients; None if there is none."""
    factor: float | None = None
    for mine, batch in zip(ours, batches, strict=True):
        theirs = gradient(other, batch, step)
        if factor is None and bool(theirs.any()):
            factor = float(mine @ theirs) / float(theirs @ theirs)
            if factor <= 0:
                return None
        if not torch.allclose(mine, theirs * (1.0 if factor is None else factor), rtol=1e-9, atol=1e-12):
            return None
    return factor
