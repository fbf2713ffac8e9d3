"""Pairs of a prompt and a response as the rows that a model is fed."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = Sequence[int]


@dataclass(frozen=True)
class Padded:
    """The B of the N sequences that have a response, padded on the right to L columns.

    Attributes:
        tokens, mask: (B, L) ids and 1 where they are not padding; the last response token isn't fed: it predicts none.
        rows: (T,) flat index b·L + l of the position that predicts each response token.
        targets: (T,) the response tokens.
        lengths: (N,) response lengths; they add up to T.
    """

    tokens: Tensor
    mask: Tensor
    rows: Tensor
    targets: Tensor
    lengths: Tensor


def collate(sequences: Sequence[tuple[Tokens, Tokens]], pad_id: int, device: torch.device) -> Padded:
    """Pairs (prompt ids, response ids) as what a model is fed."""
    # Without a response there is nothing to predict, and perhaps nothing to feed: a row of padding, with no attention.
    answered = [(prompt, response) for prompt, response in sequences if response]
    fed = [[*prompt, *response][:-1] for prompt, response in answered]
    width = max(map(len, fed), default=0)
    rows = [
        index * width + len(prompt) - 1 + offset
        for index, (prompt, response) in enumerate(answered)
        for offset in range(len(response))
    ]
    return Padded(
        tokens=torch.tensor([row + [pad_id] * (width - len(row)) for row in fed], dtype=torch.long, device=device),
        mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in fed], dtype=torch.long, device=device),
        rows=torch.tensor(rows, dtype=torch.long, device=device),
        targets=torch.tensor([t for _, response in answered for t in response], dtype=torch.long, device=device),
        lengths=torch.tensor([len(response) for _, response in sequences], device=device),
    )


def understood(model: PreTrainedModel, batch: Padded) -> dict[str, Any]:
    """What goes with the token ids into this model's `forward`, as far as its signature has it."""
    positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens)
    wanted = {"attention_mask": batch.mask, "position_ids": positions, "use_cache": False}
    parameters = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in wanted.items() if name in parameters}
