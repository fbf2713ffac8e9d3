"""How a rollout batch is divided: among ranks, into optimizer steps, into micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from upge.distributed.ranks import Ranks
from upge.model.padding import PrefixSharing, layout, width
from upge.types import Trajectory


def portions(groups: Tensor, count: int, *, among: Tensor | None = None) -> list[Tensor]:
    """The rows (N,) bool of `count` optimizer steps: whole prompts in order, spread evenly; some may be empty.

    Args: among: the prompts to spread, of which these rows have some; by default all that they have.
    """
    distinct = torch.unique_consecutive(groups) if among is None else among
    step_of = torch.div(
        torch.arange(len(distinct), device=groups.device) * count, max(len(distinct), 1), rounding_mode="floor"
    )
    lookup = dict(zip(distinct.tolist(), step_of.tolist(), strict=True))
    steps = torch.tensor([lookup[group] for group in groups.tolist()], dtype=torch.long, device=groups.device)
    return [steps == index for index in range(count)]


def micro_batches(
    trajectories: Sequence[Trajectory], budget: int, *, scope: str = "token", reach: PrefixSharing | None = None
) -> list[list[int]]:
    """Row indices of each micro-batch: at most `budget` tokens with padding, a prompt's rows together where they fit.

    Long prompts come first, so that padding is small and memory peaks at once. A scope of "group" never splits a
    prompt, one of "step" nothing at all, whatever the budget. `reach`: as the policy has it, which runs a prompt
    once for several responses; see `upge.model.padding.layout`.
    """
    rows = list(range(len(trajectories)))
    if scope == "step":
        return [rows] if rows else []
    prompts = [list(members) for _, members in groupby(rows, key=lambda row: trajectories[row].group)]
    size = [len(trajectory.prompt) + len(trajectory.response) for trajectory in trajectories]
    prompts.sort(key=lambda members: -max(size[row] for row in members))
    packed: list[_Piece] = []
    for members in prompts:
        pieces = [members] if scope == "group" else _pieces(members, trajectories, budget, reach)
        for piece in (_Piece.of(trajectory, trajectories, reach) for trajectory in pieces):
            if packed and (packed[-1] + piece).tokens <= budget:
                packed[-1] += piece
            else:
                packed.append(piece)
    return [piece.rows for piece in packed]


def tokens_of(trajectories: Sequence[Trajectory], reach: PrefixSharing | None) -> int:
    """The tokens that a model runs, with padding, for these trajectories of one prompt; a measure of what they cost."""
    return _Piece.of(list(range(len(trajectories))), trajectories, reach).tokens if trajectories else 0


@dataclass(frozen=True)
class _Piece:
    """Rows of a micro-batch, in so many of the model's rows, of which the widest has `width` tokens."""

    rows: list[int]
    count: int
    width: int

    @classmethod
    def of(cls, rows: list[int], trajectories: Sequence[Trajectory], reach: PrefixSharing | None) -> _Piece:
        """The piece of these rows of one prompt."""
        pairs = [(trajectories[row].prompt, len(trajectories[row].response)) for row in rows]
        trees = [[pairs[member] for member in tree] for tree in layout(pairs, reach)]
        return cls(list(rows), len(trees), 1 + max(width(tree) for tree in trees))

    def __add__(self, other: _Piece) -> _Piece:
        return _Piece(self.rows + other.rows, self.count + other.count, max(self.width, other.width))

    @property
    def tokens(self) -> int:
        """With padding."""
        return self.count * self.width


def _pieces(
    members: list[int], trajectories: Sequence[Trajectory], budget: int, reach: PrefixSharing | None
) -> list[list[int]]:
    """One prompt's rows, cut where they don't fit the budget together."""
    pieces: list[list[int]] = []
    for row in members:
        if pieces and _Piece.of([*pieces[-1], row], trajectories, reach).tokens <= budget:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces


WORTHWHILE = 0.95
"""Prompts move only if that leaves the busiest rank with less than this share of what the busiest had before."""


@dataclass(frozen=True)
class Load:
    """The cost of one prompt's trajectories: `tokens`, on the rank that has them."""

    group: int
    rank: int
    tokens: int


def balanced(
    ranks: Ranks, trajectories: Sequence[Trajectory], tokens: Mapping[int, int], steps: int
) -> list[Trajectory]:
    """This rank's share of a rollout batch, dealt so that each of its optimizer steps is even.

    A prompt's trajectories stay together, in their order. All ranks call it together.

    Args:
        trajectories: the share so far. tokens: what each of its groups costs; those that cost nothing stay.
        steps: into how many optimizer steps the rollout batch is divided.
    """
    if ranks.world == 1:
        return list(trajectories)
    loads = ranks.all_gather([Load(group, ranks.rank, cost) for group, cost in tokens.items()])
    owner = dealt(loads, ranks.world, steps)
    moving = ranks.all_gather([trajectory for trajectory in trajectories if owner[trajectory.group] != ranks.rank])
    mine = [trajectory for trajectory in [*trajectories, *moving] if owner[trajectory.group] == ranks.rank]
    return sorted(mine, key=lambda trajectory: trajectory.group)


def dealt(loads: Sequence[Load], ranks: int, steps: int) -> dict[int, int]:
    """The rank of each group: in every optimizer step the costliest first, each to the rank with the least so far.

    Groups stay where they are if the most that a rank has would hardly shrink.
    """
    loads = sorted(loads, key=lambda load: load.group)
    owner = {load.group: load.rank for load in loads}
    for rows in portions(torch.tensor([load.group for load in loads], dtype=torch.long), steps):
        step = [load for load, chosen in zip(loads, rows.tolist(), strict=True) if chosen and load.tokens]
        assignment = _evenly(step, ranks)
        if most(step, assignment, ranks) < WORTHWHILE * most(step, owner, ranks):
            owner |= assignment
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
