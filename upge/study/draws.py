"""Batches of the small world: drawn at random, or all there are with their probabilities."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement, product

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.estimator import Estimator
from upge.study.exact import ExactProblem

MOST = 4096
"""The largest number of outcomes that are gone through one by one."""


@dataclass(frozen=True)
class Setting:
    """What a batch is made of.

    Attributes:
        prompts: B, drawn from the world's with replacement. n: rollouts of each.
        step: the rollout batch's index, which schedules and switches read.
    """

    prompts: int = 4
    n: int = 8
    step: int = 0


@dataclass(frozen=True)
class Draw:
    """Indices into the world: (B,) prompts, (B, n) rollouts' sequences, (B,) demonstrations' sequences."""

    prompts: Tensor
    rollouts: Tensor
    demonstrations: Tensor


def draws(problem: ExactProblem, setting: Setting, count: int, seed: int) -> Iterator[Draw]:
    """`count` draws."""
    random, world = torch.Generator().manual_seed(seed), problem.world
    for _ in range(count):
        prompts = torch.randint(0, world.prompts, (setting.prompts,), generator=random)
        rollouts = torch.multinomial(problem.old.probability[prompts], setting.n, replacement=True, generator=random)
        shown = torch.multinomial(world.demonstrator[prompts], 1, generator=random)[:, 0]
        yield Draw(prompts, rollouts, shown)


def outcomes(problem: ExactProblem, setting: Setting) -> list[tuple[float, Draw]] | None:
    """Every draw with its probability, or None where there are too many.

    Rollouts of a prompt are exchangeable, so each multiset of them stands once, with the probability of all its orders.
    """
    world = problem.world
    size = len(world.sequences)
    shown = [torch.nonzero(row)[:, 0].tolist() for row in world.demonstrator]
    per_prompt = math.comb(size + setting.n - 1, setting.n) * sum(map(len, shown))
    if per_prompt**setting.prompts > MOST:
        return None
    single = [
        (_chance(problem, x, picked) * float(world.demonstrator[x, show]) / world.prompts, x, picked, show)
        for x in range(world.prompts)
        for picked in combinations_with_replacement(range(size), setting.n)
        for show in shown[x]
    ]
    found = []
    for combination in product(single, repeat=setting.prompts):
        chance = math.prod(each[0] for each in combination)
        prompts, rollouts, demonstrations = (torch.tensor([each[i] for each in combination]) for i in (1, 2, 3))
        found.append((chance, Draw(prompts, rollouts, demonstrations)))
    return found


def _chance(problem: ExactProblem, x: int, picked: tuple[int, ...]) -> float:
    """The probability that the rollouts of a prompt are these, in any order."""
    orders = math.factorial(len(picked))
    for times in Counter(picked).values():
        orders //= math.factorial(times)
    return orders * math.prod(float(problem.old.probability[x, sequence]) for sequence in picked)


@dataclass(frozen=True)
class Sampled:
    """A batch, and where in the world's list each of its tokens stands: (T,) indices x·S·L + y·L + t."""

    batch: Batch
    place: Tensor


def sampled(problem: ExactProblem, setting: Setting, estimator: Estimator, draw: Draw, *, stale: bool) -> Sampled:
    """The batch of a draw, as a run would make it for this estimator: with what its terms want, and no more."""
    world, wanted = problem.world, estimator.wants(setting.step)
    rollouts = draw.rollouts if not wanted or estimator.wants_rollouts(setting.step) else draw.rollouts[:, :0]
    shown = draw.demonstrations[:, None]
    shown = shown if not wanted or estimator.wants_demonstrations(setting.step) else shown[:, :0]
    columns = rollouts.shape[1] + shown.shape[1]
    sequence = torch.cat([rollouts, shown], 1).flatten()
    prompt = draw.prompts.repeat_interleave(columns)
    demonstration = torch.tensor([False] * rollouts.shape[1] + [True] * shown.shape[1]).repeat(len(draw.prompts))
    length = world.lengths[sequence]
    trajectory = torch.arange(len(sequence)).repeat_interleave(length)
    position = torch.arange(len(trajectory)) - (length.cumsum(0) - length)[trajectory]
    place = (prompt * len(world.sequences) + sequence)[trajectory] * world.length + position
    batch = Batch(
        logp=problem.now.logp.flatten()[place],
        trajectory=trajectory,
        group=torch.arange(len(draw.prompts)).repeat_interleave(columns),
        demonstration=demonstration,
        reward=world.reward[prompt, sequence],
        old_logp=problem.old.logp.flatten()[place] if stale else None,
        rollout_logp=problem.old.logp.flatten()[place],
        reference_logp=problem.start.logp.flatten()[place],
        entropy=problem.now.entropy.flatten()[place],
        value=problem.value.flatten()[place],
        truncated=world.truncated[sequence],
    )
    return Sampled(batch, place)
