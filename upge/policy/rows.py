"""Pairs of a prompt and a response as the rows that a model is fed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from upge.policy.tree_attention import TreeMask, pairs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = Sequence[int]

LONGEST = 8192
"""Tokens of a row that responses share, at most: its mask of pairs takes 64 MiB."""


@dataclass(frozen=True)
class Reach:
    """How far a row that several responses share may go.

    Attributes:
        tokens: how many keys every query sees where attention costs as much as all the rest.
        branching: whether attention looks at the pairs that are seen, and not at all of a row; see
            `upge.policy.tree_attention`.
    """

    tokens: float
    branching: bool


@dataclass(frozen=True)
class Padded:
    """What the N sequences with a response are fed as: B rows, padded on the right to L columns.

    Attributes:
        tokens: (B, L) ids; the last response token isn't fed: it predicts none.
        mask: (B, L), 1 where there is no padding; in trees a TreeMask, (B, 1, L, L).
        positions: (B, L) each token's place in its sequence.
        rows: (T,) flat index b·L + l of the place that predicts each response token.
        targets: (T,) the response tokens.
        lengths: (N,) response lengths; they add up to T.
    """

    tokens: Tensor
    mask: Tensor
    positions: Tensor
    rows: Tensor
    targets: Tensor
    lengths: Tensor


def collate(
    sequences: Sequence[tuple[Tokens, Tokens]], pad_id: int, device: torch.device, *, reach: Reach | None = None
) -> Padded:
    """Pairs (prompt ids, response ids) as what a model is fed.

    Args: reach: None gives each pair a row of its own. Otherwise neighbours of one prompt share a row where that is
        less work, as a tree: the prompt once, then the responses, each of which sees the prompt and itself. See
        `layout`.
    """
    # Without a response there is nothing to predict, and perhaps nothing to feed: a row of padding, with no attention.
    answered = [(prompt, response) for prompt, response in sequences if response]
    trees = layout([(prompt, len(response)) for prompt, response in answered], reach)
    rows = [_Row([answered[member] for member in tree]) for tree in trees]
    width = max((len(row.tokens) for row in rows), default=0)

    def padded(columns: list[list[int]], fill: int) -> Tensor:
        filled = [column + [fill] * (width - len(column)) for column in columns]
        return torch.tensor(filled, dtype=torch.long, device=device).reshape(len(rows), width)

    tokens, plain = padded([row.tokens for row in rows], pad_id), all(len(tree) == 1 for tree in trees)
    return Padded(
        tokens=tokens,
        mask=padded([[1] * len(row.tokens) for row in rows], 0)
        if plain
        else TreeMask.of([[*row.branches, width - len(row.tokens)] for row in rows], device),
        positions=torch.arange(width, device=device).expand_as(tokens)
        if plain
        else padded([row.positions for row in rows], 0),
        rows=torch.tensor(
            [index * width + place for index, row in enumerate(rows) for place in row.predicting],
            dtype=torch.long,
            device=device,
        ),
        targets=torch.tensor([t for _, response in answered for t in response], dtype=torch.long, device=device),
        lengths=torch.tensor([len(response) for _, response in sequences], device=device),
    )


def layout(sequences: Sequence[tuple[Tokens, int]], reach: Reach | None) -> list[list[int]]:
    """Which sequences, (prompt ids, response length), share a row: indices, neighbours of one prompt at most.

    A row of L tokens costs L + P/reach, where P counts the pairs of a query and a key that attention looks at: L², or
    where it is branching those of each branch alone. Of a prompt's responses 1, 2, 4, … or all go into a row, whichever
    makes their rows cost least.
    """
    if reach is None:
        return [[index] for index in range(len(sequences))]
    found: list[list[int]] = []
    for _, members in groupby(range(len(sequences)), key=lambda index: tuple(sequences[index][0])):
        found += _cheapest(list(members), sequences, reach)
    return found


def width(sequences: Sequence[tuple[Tokens, int]]) -> int:
    """The tokens of the row that these, of one prompt, share."""
    return len(sequences[0][0]) + sum(length - 1 for _, length in sequences)


def understood(model: PreTrainedModel, batch: Padded) -> dict[str, Any]:
    """What goes with the token ids into this model's `forward`, as far as its signature has it."""
    mask = batch.mask
    if mask.ndim == 4 and model.config._attn_implementation != "sdpa":  # which adds its mask to the scores
        least = torch.finfo(model.dtype).min
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, least)
    wanted = {"attention_mask": mask, "position_ids": batch.positions, "use_cache": False}
    parameters = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in wanted.items() if name in parameters}


class _Row:
    """A prompt and responses to it, end to end, but for each one's last token.

    Attributes:
        branches: the tokens of the prompt, then of each response.
        predicting: the place that predicts each response token.
    """

    def __init__(self, sequences: Sequence[tuple[Tokens, Tokens]]) -> None:
        size = len(sequences[0][0])
        self.tokens, self.positions, self.branches = list(sequences[0][0]), list(range(size)), [size]
        self.predicting: list[int] = []
        for _, response in sequences:
            first, count = len(self.tokens), len(response) - 1
            self.predicting += [size - 1, *range(first, first + count)]
            self.tokens += response[:-1]
            self.positions += range(size, size + count)
            self.branches.append(count)


def _cheapest(members: list[int], sequences: Sequence[tuple[Tokens, int]], reach: Reach) -> list[list[int]]:
    sizes = [2**power for power in range(len(members).bit_length())]
    ways = [[members[at : at + size] for at in range(0, len(members), size)] for size in {*sizes, len(members)}]
    prompt = len(sequences[members[0]][0])

    def cost(trees: list[list[int]]) -> float:
        # Rows of one micro-batch are as wide as its widest.
        wide = max(width([sequences[member] for member in tree]) for tree in trees)
        if wide > LONGEST and len(trees) < len(members):
            return math.inf
        branches = ([prompt, *(sequences[member][1] - 1 for member in tree)] for tree in trees)
        seen = sum(map(pairs, branches)) if reach.branching else len(trees) * wide**2
        return len(trees) * wide + seen / reach.tokens

    return min(ways, key=cost)
