"""Pairs of a prompt and a response as the rows that a model is fed."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CALL = 5e6
"""Floating-point operations that take as long as one more call of the kernel, forward and backward."""


class TreeMask(Tensor):
    """(B, 1, L, L) bool: which key each query sees. Padding sees itself, since to see nothing gives NaN.

    Attributes:
        branches: of every row, the tokens of its prompt, then of each response to it, then of its padding.
    """

    branches: Sequence[Sequence[int]]

    @classmethod
    def of(cls, branches: Sequence[Sequence[int]], device: torch.device) -> TreeMask:
        """The mask of rows with these branches, which have the same length altogether."""
        number = [[index for index, size in enumerate(row) for _ in range(size)] for row in branches]
        segment = torch.tensor(number, dtype=torch.long, device=device)
        padding = torch.tensor([len(row) - 1 for row in branches], device=device)[:, None]
        place = torch.arange(segment.shape[1], device=device)
        query, key = segment[:, :, None], segment[:, None, :]
        seen = (place <= place[:, None]) & ((key == 0) | (key == query)) & (segment != padding)[:, :, None]
        mask = (seen | (place == place[:, None]))[:, None].as_subclass(cls)
        mask.branches = branches
        return mask

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Attention by branches where that is less work; else, and for all other functions, an ordinary tensor's."""
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunctionSubclass():
            if func is scaled_dot_product_attention and _worth_splitting(*args, **kwargs):
                return _by_branches(*args, **kwargs)
            return func(*args, **kwargs)


def pairs(branches: Sequence[int]) -> int:
    """Of a query and a key: how many the kernel looks at in a row of these branches, without its padding."""
    prompt, *responses = branches
    return prompt**2 + sum(response * (prompt + response) for response in responses)


def _worth_splitting(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **named: Any,
) -> bool:
    """Whether the masked pairs cost more than calling the kernel once for every branch."""
    branches = getattr(attn_mask, "branches", None)
    if branches is None or query.ndim != 4 or query.shape[2] != key.shape[2] or dropout_p or is_causal:
        return False
    rows, heads, length, width = query.shape
    if rows != len(branches) or length != sum(branches[0]):
        return False
    unseen = rows * length**2 - sum(pairs(row[:-1]) for row in branches)
    return 12 * heads * width * unseen > CALL * sum(len(row) - 1 for row in branches)


def _by_branches(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: TreeMask,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **named: Any,
) -> Tensor:
    """(B, heads, L, width) the same attention; 0 at padding."""
    attend = partial(scaled_dot_product_attention, **named)
    rows = zip(*(tensor.split(1) for tensor in (query, key, value)), attn_mask.branches, strict=True)
    return torch.cat([_row(attend, q, k, v, branches) for q, k, v, branches in rows])


def _row(attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, branches: Sequence[int]) -> Tensor:
    parts = [tensor.split(list(branches), dim=2) for tensor in (query, key, value)]
    (query, *queries), (key, *keys), (value, *values) = parts
    outputs = [attend(query, key, value, is_causal=True)]
    for branch_query, own_key, own_value in zip(queries[:-1], keys, values, strict=False):
        if branch_query.shape[2]:
            seen = _after(branches[0], branch_query.shape[2], branch_query.device)
            mine = torch.cat([key, own_key], 2), torch.cat([value, own_value], 2)
            outputs.append(attend(branch_query, *mine, attn_mask=seen))
    return torch.cat([*outputs, torch.zeros_like(queries[-1])], 2)


def _after(prompt: int, response: int, device: torch.device) -> Tensor:
    """(response, prompt + response) bool: the prompt, and of the response what isn't later."""
    return torch.ones(response, prompt + response, dtype=torch.bool, device=device).tril(prompt)


Tokens = Sequence[int]

LONGEST = 8192
"""Tokens of a row that responses share, at most: its mask of pairs takes 64 MiB."""


@dataclass(frozen=True)
class PrefixSharing:
    """How far a row that several responses share may go.

    Attributes:
        tokens: how many keys every query sees where attention costs as much as all the rest.
        branching: whether attention looks at the pairs that are seen, and not at all of a row; see
            `upge.model.padding`.
    """

    tokens: float
    branching: bool


@dataclass(frozen=True)
class Padded:
    """The model's input for N sequences with a response: B rows, padded on the right to L columns.

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
    sequences: Sequence[tuple[Tokens, Tokens]], pad_id: int, device: torch.device, *, reach: PrefixSharing | None = None
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


def layout(sequences: Sequence[tuple[Tokens, int]], reach: PrefixSharing | None) -> list[list[int]]:
    """Which sequences, (prompt ids, response length), share a row: indices, neighbours of one prompt at most.

    A row of L tokens costs L + P/reach, where P counts the pairs of a query and a key that attention looks at: L², or
    where it is branching those of each branch alone. Of a prompt's responses 1, 2, 4, … or all go into a row, whichever
    makes their rows cost least.
    """
    if reach is None:
        return [[index] for index in range(len(sequences))]
    rows: list[list[int]] = []
    for _, members in groupby(range(len(sequences)), key=lambda index: tuple(sequences[index][0])):
        rows += _cheapest(list(members), sequences, reach)
    return rows


def width(sequences: Sequence[tuple[Tokens, int]]) -> int:
    """The tokens of the row that these, of one prompt, share."""
    return len(sequences[0][0]) + sum(length - 1 for _, length in sequences)


def understood(model: PreTrainedModel, batch: Padded) -> dict[str, Any]:
    """The arguments of this model's `forward` beside the token ids, limited to those in its signature."""
    mask = batch.mask
    if mask.ndim == 4 and model.config._attn_implementation != "sdpa":  # which adds its mask to the scores
        least = torch.finfo(model.dtype).min
        mask = torch.zeros(mask.shape, dtype=model.dtype, device=mask.device).masked_fill(~mask, least)
    arguments = {"attention_mask": mask, "position_ids": batch.positions, "use_cache": False}
    parameters = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in arguments.items() if name in parameters}


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


def _cheapest(members: list[int], sequences: Sequence[tuple[Tokens, int]], reach: PrefixSharing) -> list[list[int]]:
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
