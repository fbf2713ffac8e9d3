"""Prompts dealt anew among ranks before they are learned from, so that each rank has about as much to compute.

Ranks sample equally many prompts, but responses differ in length, and prompts without signal cost nothing. All ranks
wait for the one with the most. Counts are over all ranks, so it doesn't matter to the gradient who holds a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from upge.distributed.team import Team
from upge.run.packing import Grouped, portions

WORTHWHILE = 0.95
"""Prompts move only if that leaves the busiest rank with less than this share of what the busiest had before."""


@dataclass(frozen=True)
class Load:
    """What one prompt's trajectories cost: `tokens`, on the rank that holds them."""

    group: int
    rank: int
    tokens: int


def balanced(team: Team, grouped: Grouped, tokens: Mapping[int, int], steps: int) -> Grouped:
    """This rank's share of a rollout batch, dealt so that each of its optimizer steps is even.

    A prompt's trajectories stay together, in their order. All ranks call it together.

    Args:
        grouped: the share so far. tokens: what each of its groups costs; those that cost nothing stay.
        steps: into how many optimizer steps the rollout batch is divided.
    """
    if team.world == 1:
        return grouped
    loads = team.gathered([Load(group, team.rank, cost) for group, cost in tokens.items()])
    owner = dealt(loads, team.world, steps)
    moving = team.gathered([pair for pair in grouped if owner[pair[0]] != team.rank])
    mine = [pair for pair in [*grouped, *moving] if owner[pair[0]] == team.rank]
    return sorted(mine, key=lambda pair: pair[0])


def dealt(loads: Sequence[Load], ranks: int, steps: int) -> dict[int, int]:
    """The rank of each group: in every optimizer step the costliest first, each to the rank with the least so far.

    Groups stay where they are if the most that a rank has would hardly shrink.
    """
    loads = sorted(loads, key=lambda load: load.group)
    owner = {load.group: load.rank for load in loads}
    for rows in portions(torch.tensor([load.group for load in loads], dtype=torch.long), steps):
        step = [load for load, chosen in zip(loads, rows.tolist(), strict=True) if chosen and load.tokens]
        found = _evenly(step, ranks)
        if most(step, found, ranks) < WORTHWHILE * most(step, owner, ranks):
            owner |= found
    return owner


def most(loads: Sequence[Load], owner: Mapping[int, int], ranks: int) -> int:
    """The tokens of the rank that has the most."""
    held = [0] * ranks
    for load in loads:
        held[owner[load.group]] += load.tokens
    return max(held)


def _evenly(loads: Sequence[Load], ranks: int) -> dict[int, int]:
    held, owner = [0] * ranks, {}
    for load in sorted(loads, key=lambda load: (-load.tokens, load.group)):
        # Of ranks that have equally little, the one that has it already.
        rank = min(range(ranks), key=lambda rank: (held[rank], rank != load.rank, rank))
        owner[load.group] = rank
        held[rank] += load.tokens
    return owner
