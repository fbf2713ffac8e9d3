"""How much a recipe asks for: tokens, rows, optimizer steps and micro-batches, at most."""

from __future__ import annotations

import math
from dataclasses import dataclass

from upge.recipe import Recipe

_LOOKED_AT = 10_000
"""Rollout batches that are asked what they want; a longer run goes on as the last of these."""


@dataclass(frozen=True)
class Work:
    """What a rollout batch takes where every prompt and response is as long as it may be.

    Attributes:
        prompt, response, demonstration: tokens of one, at most; 0 for what the recipe never asks for.
        sampled, shown: rollout batches with rollouts, and with demonstrations, in the whole run.
        rollouts, demonstrations: rows of a rollout batch that has them, over all ranks.
        tokens: prompts, responses and demonstrations of the largest rollout batch.
        updates: optimizer steps of a rollout batch. micro_batches: forward and backward passes of each, on each rank.
        rows: of a micro-batch.
    """

    prompt: int
    response: int
    demonstration: int
    sampled: int
    shown: int
    rollouts: int
    demonstrations: int
    tokens: int
    updates: int
    micro_batches: int
    rows: int


def work_of(recipe: Recipe, prompt: int, processes: int) -> Work:
    """The work of a recipe. Args: prompt: tokens of the longest prompt. processes: ranks."""
    train, n = recipe.train, recipe.rollout.n
    wants = [_wants(recipe, step) for step in range(min(train.steps, _LOOKED_AT))]
    last = wants[-1:] * (train.steps - len(wants))
    sampled, shown = (sum(each[kind] for each in (*wants, *last)) for kind in (0, 1))
    response = recipe.rollout.max_tokens if sampled else 0
    shown_tokens = (train.demonstration_tokens or recipe.rollout.max_tokens) if shown else 0
    rollouts = train.prompts * n if sampled else 0
    demonstrations = train.prompts if shown else 0
    both = any(all(each) for each in wants)
    each = rollouts * (prompt + response), demonstrations * (prompt + shown_tokens)
    longest = prompt + max(response, shown_tokens, 1)
    per_prompt = n * (sampled > 0) + (shown > 0) if both else max(n * (sampled > 0), int(shown > 0))
    mine = math.ceil(train.prompts / train.minibatches / processes) * per_prompt
    rows = max(1, min(train.micro_batch_tokens // longest, mine))
    return Work(
        prompt=prompt,
        response=response,
        demonstration=shown_tokens,
        sampled=sampled,
        shown=shown,
        rollouts=rollouts,
        demonstrations=demonstrations,
        tokens=sum(each) if both else max(each),
        updates=train.minibatches * train.epochs,
        micro_batches=math.ceil(mine / rows),
        rows=rows,
    )


def _wants(recipe: Recipe, step: int) -> tuple[bool, bool]:
    return recipe.estimator.wants_rollouts(step), recipe.estimator.wants_demonstrations(step)
