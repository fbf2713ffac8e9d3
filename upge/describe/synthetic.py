"""The synthetic batches on which estimators are compared: every regime that a threshold may lie in, in float64.

Rewards from −40 to 40, groups of 1 to 64, responses from one token to the completion budget, log-probs and entropies
from 10⁻⁴ to 12 nats, and π_old, engine and reference up to 18 nats away, inside the ±20 to which ratios are clamped.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.estimator import Estimator
from upge.recipe.schema import Recipe
from upge.testing.batches import PER_TOKEN, RICH, Case, Prompt, seeded

LONGEST, LONGEST_EVER = 200, 20_000
"""Tokens of the longest trajectory, by default and at most."""

AWAY = 18.0
"""How far two policies are apart at most, nats a token."""

WARM_UP = 16
"""Rollout batches over which state is carried before estimators are compared again."""


@dataclass(frozen=True)
class Condition:
    """A property of a batch, in words, and the function that gives any batch this property."""

    words: str
    make: Callable[[Batch], Batch]


Conditions = tuple[Condition, ...]


def _explored(batch: Batch) -> Batch:
    explored = torch.zeros(batch.prompts, dtype=torch.bool)
    explored[batch.prompt[~batch.demonstration]] = True
    kept = batch.select(explored[batch.prompt])
    return replace(kept, reward=kept.reward.abs() + 0.125)


def _one_token(batch: Batch) -> Batch:
    """The batch with each token as a trajectory of its own, so that every token has its own weight."""
    rows = batch.trajectory
    names = ("group", "demonstration", "reward", "truncated")
    spread: dict[str, Any] = {name: None if (x := getattr(batch, name)) is None else x[rows] for name in names}
    return replace(batch, trajectory=torch.arange(len(rows)), **spread)


def on_policy(batch: Batch) -> Batch:
    """The batch with π_θ for π_old."""
    return replace(batch, old_logp=None)


ON_POLICY = Condition("π_old is π_θ (on-policy)", on_policy)
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


def combinations() -> Iterator[Conditions]:
    """None, each by itself, and each together with being on-policy or of one token."""
    yield ()
    yield from ((condition,) for condition in CONDITIONS)
    for first in (ON_POLICY, ONE_TOKEN):
        yield from ((first, second) for second in CONDITIONS if second not in (ON_POLICY, ONE_TOKEN))
    yield (ON_POLICY, ONE_TOKEN)


def made(batch: Batch, conditions: Conditions) -> Batch:
    """The batch under all of the conditions."""
    for condition in conditions:
        batch = condition.make(batch)
    return batch


@functools.lru_cache(maxsize=4)
def probes(longest: int = LONGEST) -> tuple[Batch, ...]:
    """The batches, the one in which most happens first; some trajectories have `longest` tokens."""
    groups = Case((Prompt(64, 2, "wild"), Prompt(33, 1), Prompt(1, 4), Prompt(17, 0, "wrong")), "near", 3, seed=31)
    many = Case(tuple(Prompt(8, 1, kind) for kind in ("mixed", "wild", "right", "wrong")) * 3, "far", 4, True, seed=32)
    plain = many.batch
    return (
        RICH.batch,
        *(_far(case.batch, engine=3.0) for case in seeded(4)[-2:]),
        _far(plain, old=AWAY, engine=AWAY, reference=AWAY),
        _scaled(plain, torch.logspace(-4, 1, plain.size)),  # every trajectory as sure of itself as it likes
        _scaled(plain, torch.full((plain.size,), 1e-4)),
        _scaled(plain, torch.full((plain.size,), 12.0)),
        replace(plain, reward=plain.reward * 20, truncated=torch.ones_like(plain.demonstration)),
        replace(plain, reward=plain.reward.abs(), truncated=torch.zeros_like(plain.demonstration)),
        _far(groups.batch, engine=2.0),
        _far(_long(longest), engine=3.0),
    )


def histories(longest: int = LONGEST) -> tuple[tuple[Batch, ...], ...]:
    """Rollout batches in a row, through which state is carried: none, all kinds, all successes, all failures."""
    short = [batch for batch in probes(longest) if int(batch.length.max()) < LONGEST]
    mixed = tuple(short[index % len(short)] for index in range(WARM_UP))
    scored = (tuple(replace(b, reward=torch.full_like(b.reward, score)) for b in mixed) for score in (1.0, 0.0))
    return ((), mixed, *scored)


def words(longest: int, steps: Sequence[int]) -> str:
    """A description of the tried batches."""
    at = f"step {steps[0]}" if len(steps) == 1 else f"{len(steps)} steps from {steps[0]} to {steps[-1]}"
    return (
        f"{len(probes(longest))} synthetic batches (groups of 1 to 64, up to {longest} tokens a response), {at}, "
        f"state carried over 0 and {WARM_UP} of them"
    )


def tried_steps(last: int, turns: Sequence[int] = ()) -> tuple[int, ...]:
    """Steps from 0 to `last`, evenly apart, and both sides of each turn, a step at which something changes."""
    even = {round(last * index / 8) for index in range(9)}
    near = {step for turn in turns for step in (turn - 1, turn, turn + 1) if step >= 0}
    return tuple(sorted({0, min(1, last), *even, *near}))


def longest_of(*recipes: Recipe) -> int:
    """Tokens of the longest responses that are tried for recipes: their completion budget, within bounds."""
    return min(max(LONGEST, *(recipe.rollout.max_tokens for recipe in recipes)), LONGEST_EVER)


def turns(estimator: Estimator) -> tuple[int, ...]:
    """The steps at which a schedule ends or a switch may turn: the whole numbers among their settings."""
    switches = [part.dump() for part in estimator.switch]
    dumped = estimator.model_dump()
    return tuple(sorted({*_whole(switches), *_schedules(dumped)}))


def _whole(value: Any) -> Iterator[int]:
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for element in value.values() if isinstance(value, Mapping) else value:
            yield from _whole(element)


def _schedules(value: Any) -> Iterator[int]:
    if isinstance(value, Mapping) and {"start", "end", "steps"} <= value.keys():
        yield from _whole(value["steps"])
    elif isinstance(value, Mapping | list | tuple):
        for element in value.values() if isinstance(value, Mapping) else value:
            yield from _schedules(element)


def _long(longest: int) -> Batch:
    """A few trajectories of up to `longest` tokens, some of exactly as many, some cut there."""
    case = Case((Prompt(3, 1), Prompt(2, 1, "wild"), Prompt(2, 0, "right")), "near", longest, seed=21)
    whole = replace(case, shortest=longest, prompts=(Prompt(2, 1, "wild"),))
    return _joined(case.batch, whole.batch)


def _joined(one: Batch, other: Batch) -> Batch:
    """The prompts of both batches in one."""
    names = (*PER_TOKEN, "demonstration", "reward", "truncated")
    both: dict[str, Any] = {name: torch.cat([getattr(one, name), getattr(other, name)]) for name in names}
    trajectory = torch.cat([one.trajectory, other.trajectory + one.size])
    return Batch(trajectory=trajectory, group=torch.cat([one.group, other.group + 10_000]), **both)


def _far(batch: Batch, *, old: float = 0, engine: float = 0, reference: float = 0) -> Batch:
    """The batch with log-probs of others as far as that from π_θ's, nats; 0 leaves them."""
    away = {"old_logp": old, "rollout_logp": engine, "reference_logp": reference}
    random = torch.Generator().manual_seed(5)
    logp = _there(batch.logp)
    moved: dict[str, Any] = {}
    for name, most in away.items():
        if most and getattr(batch, name) is not None:
            # As many steps of a size as of any other, both ways.
            size = most ** (2 * torch.rand(logp.shape, generator=random, dtype=batch.dtype) - 1)
            sign = torch.randint(0, 2, logp.shape, generator=random) * 2 - 1
            moved[name] = (logp + size.clamp(max=most) * sign).clamp(max=-1e-9)
    return replace(batch, **moved)


def _scaled(batch: Batch, scale: Tensor) -> Batch:
    """The batch with log-probs and entropies of about `scale` (N,), nats; ratios stay."""
    by = scale.to(batch.dtype)[batch.trajectory]
    logp = _there(batch.logp)
    scaled: dict[str, Any] = {"logp": logp / 5 * by, "entropy": _there(batch.entropy) / 3 * by}
    for name in ("old_logp", "rollout_logp", "reference_logp"):
        scaled[name] = scaled["logp"] + (_there(getattr(batch, name)) - logp) * by.clamp(max=1)
    return replace(batch, **{name: x if name == "entropy" else x.clamp(max=-1e-9) for name, x in scaled.items()})


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor
