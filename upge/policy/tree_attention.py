"""Attention in rows that are trees, at the pairs that are seen and no others.

A kernel that is given a mask of pairs looks at all of them: of a prompt of p tokens with S responses of r, that is
(p + S·r)² pairs, where p² + S·r·(p + r) are seen. So the mask knows its tree, and where a model hands it to
`scaled_dot_product_attention` it answers branch by branch: the prompt attends to itself, then every response to the
prompt and itself. Everything else finds an ordinary tensor: models that add to it, slice it or compute attention by
themselves keep the whole mask, and its numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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
    """Whether the pairs that nobody sees cost more than calling the kernel once for every branch."""
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
    """(B, heads, L, width) the same attention; 0 where there is padding, which nobody reads."""
    attend = partial(scaled_dot_product_attention, **named)
    rows = zip(*(each.split(1) for each in (query, key, value)), attn_mask.branches, strict=True)
    return torch.cat([_row(attend, q, k, v, branches) for q, k, v, branches in rows])


def _row(attend: Callable[..., Tensor], query: Tensor, key: Tensor, value: Tensor, branches: Sequence[int]) -> Tensor:
    parts = [each.split(list(branches), dim=2) for each in (query, key, value)]
    (query, *queries), (key, *keys), (value, *values) = parts
    found = [attend(query, key, value, is_causal=True)]
    for asked, own_key, own_value in zip(queries[:-1], keys, values, strict=False):
        if asked.shape[2]:
            seen = _after(branches[0], asked.shape[2], asked.device)
            mine = torch.cat([key, own_key], 2), torch.cat([value, own_value], 2)
            found.append(attend(asked, *mine, attn_mask=seen))
    return torch.cat([*found, torch.zeros_like(queries[-1])], 2)


def _after(prompt: int, response: int, device: torch.device) -> Tensor:
    """(response, prompt + response) bool: the prompt, and of the response what isn't later."""
    return torch.ones(response, prompt + response, dtype=torch.bool, device=device).tril(prompt)
