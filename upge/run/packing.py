"""From trajectories to batches: the flat tensors of a rollout batch, its optimizer steps, their micro-batches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor

from upge.batch import Batch
from upge.flow import Trajectory
from upge.policy.rows import Reach, layout, width

Grouped = Sequence[tuple[int, Trajectory]]
"""(group, trajectory) pairs; those of one group lie together."""


def rollout_batch(grouped: Grouped, device: torch.device, dtype: torch.dtype, *, rollout_logp: bool = False) -> Batch:
    """The batch of these trajectories before any forward pass, in the model's `dtype` and at least float32."""
    number = torch.promote_types(torch.float32, dtype)
    trajectories = [trajectory for _, trajectory in grouped]
    lengths = torch.tensor([len(each.response) for each in trajectories], dtype=torch.long)

    def per_row(values: Iterable[object], kind: torch.dtype) -> Tensor:
        return torch.tensor(list(values), dtype=kind, device=device)

    return Batch(
        logp=None,
        trajectory=torch.repeat_interleave(torch.arange(len(trajectories)), lengths).to(device),
        group=per_row((group for group, _ in grouped), torch.long),
        demonstration=per_row((each.demonstration for each in trajectories), torch.bool),
        reward=per_row((each.reward for each in trajectories), number),
        truncated=per_row((each.truncated for each in trajectories), torch.bool),
        rollout_logp=per_row(_rollout_logps(trajectories), number) if rollout_logp else None,
    )


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
    grouped: Grouped, budget: int, *, scope: str = "token", reach: Reach | None = None
) -> list[list[int]]:
    """Row indices of each micro-batch: at most `budget` tokens with padding, a prompt's rows together where they fit.

    Long prompts come first, so that padding is small and memory peaks at once. A scope of "group" never splits a
    prompt, one of "step" nothing at all, whatever the budget says. `reach`: as the policy has it, which runs a prompt
    once for several responses; see `upge.policy.rows.layout`.
    """
    rows = list(range(len(grouped)))
    if scope == "step":
        return [rows] if rows else []
    prompts = [list(members) for _, members in groupby(rows, key=lambda row: grouped[row][0])]
    size = [len(trajectory.prompt) + len(trajectory.response) for _, trajectory in grouped]
    prompts.sort(key=lambda members: -max(size[row] for row in members))
    packed: list[_Piece] = []
    for members in prompts:
        pieces = [members] if scope == "group" else _pieces(members, grouped, budget, reach)
        for piece in (_Piece.of(each, grouped, reach) for each in pieces):
            if packed and (packed[-1] + piece).tokens <= budget:
                packed[-1] += piece
            else:
                packed.append(piece)
    return [piece.rows for piece in packed]


def tokens_of(grouped: Grouped, reach: Reach | None) -> int:
    """The tokens that a model runs, with padding, for these trajectories of one prompt; a measure of what they cost."""
    return _Piece.of(list(range(len(grouped))), grouped, reach).tokens if grouped else 0


@dataclass(frozen=True)
class _Piece:
    """Rows of a micro-batch, in so many of the model's rows, of which the widest has `width` tokens."""

    rows: list[int]
    count: int
    width: int

    @classmethod
    def of(cls, rows: list[int], grouped: Grouped, reach: Reach | None) -> _Piece:
        """The piece of these rows of one prompt."""
        pairs = [(grouped[row][1].prompt, len(grouped[row][1].response)) for row in rows]
        trees = [[pairs[member] for member in tree] for tree in layout(pairs, reach)]
        return cls(list(rows), len(trees), 1 + max(width(tree) for tree in trees))

    def __add__(self, other: _Piece) -> _Piece:
        return _Piece(self.rows + other.rows, self.count + other.count, max(self.width, other.width))

    @property
    def tokens(self) -> int:
        """With padding."""
        return self.count * self.width


def _pieces(members: list[int], grouped: Grouped, budget: int, reach: Reach | None) -> list[list[int]]:
    """One prompt's rows, cut where they don't fit the budget together."""
    pieces: list[list[int]] = []
    for row in members:
        if pieces and _Piece.of([*pieces[-1], row], grouped, reach).tokens <= budget:
            pieces[-1].append(row)
        else:
            pieces.append([row])
    return pieces


def _rollout_logps(trajectories: Sequence[Trajectory]) -> Iterable[float]:
    """The engine's log-probs; 0 for demonstrations, which no engine drew."""
    for each in trajectories:
        if each.demonstration:
            yield from [0.0] * len(each.response)
        elif each.rollout_logp is None:
            raise ValueError(f"the engine reported no log-probs for '{each.problem.id}', which the recipe reads")
        else:
            yield from each.rollout_logp
