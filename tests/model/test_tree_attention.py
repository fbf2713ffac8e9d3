"""Attention branch by branch is attention under the whole mask, and only where that is less work."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support import tiny_models as models
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from upge.model import log_probs, padding
from upge.model.padding import TreeMask, pairs
from upge.model.recompute import recomputed

CPU = torch.device("cpu")
BRANCHES = [[3, 2, 0, 4, 1], [2, 5, 3, 0], [1, 0, 9]]
TREES = st.lists(
    st.tuples(st.integers(1, 5), st.lists(st.integers(0, 4), min_size=1, max_size=4)), min_size=1, max_size=3
)


@contextmanager
def calls_cost(operations: float) -> Iterator[list[int]]:
    """While open, this is what a call costs; the list gets the rows of each mask that is split."""
    kept, split = padding.CALL, padding._by_branches
    seen: list[int] = []

    def counted(*args: Tensor, **named: object) -> Tensor:
        seen.append(args[0].shape[0])
        return split(*args, **named)  # type: ignore[arg-type]

    padding.CALL, padding._by_branches = operations, counted  # type: ignore[assignment]
    try:
        yield seen
    finally:
        padding.CALL, padding._by_branches = kept, split


def padded(trees: list[tuple[int, list[int]]]) -> list[list[int]]:
    wide = max(prompt + sum(responses) for prompt, responses in trees)
    return [[prompt, *responses, wide - prompt - sum(responses)] for prompt, responses in trees]


def states(branches: list[list[int]], heads: int, keys: int) -> list[Tensor]:
    torch.manual_seed(0)
    length, kind = sum(branches[0]), torch.float64
    return [
        torch.randn(len(branches), count, length, 4, dtype=kind, requires_grad=True) for count in (heads, keys, keys)
    ]


def answer(mask: Tensor, given: list[Tensor], fed: Tensor, scale: float | None) -> list[Tensor]:
    """Attention where tokens are fed, and its gradients in query, key and value."""
    shared = given[0].shape[1] != given[1].shape[1]
    found = scaled_dot_product_attention(*given, attn_mask=mask, scale=scale, enable_gqa=shared)
    assert type(found) is Tensor
    found = found * fed[:, None, :, None]
    weight = torch.linspace(-1, 2, found.numel(), dtype=found.dtype).reshape(found.shape)
    return [found, *torch.autograd.grad((found * weight).sum(), given)]


@given(TREES.map(padded), st.sampled_from([1, 2]), st.sampled_from([None, 0.3]))
@example(BRANCHES, 1, None)
@example([[1, 0, 0]], 2, None)
@example([[2, 3, 0]], 1, 0.3)
def test_branch_by_branch_is_the_whole_mask(branches: list[list[int]], keys: int, scale: float | None) -> None:
    given = states(branches, 2, keys)
    fed = torch.tensor([[1.0] * sum(row[:-1]) + [0.0] * row[-1] for row in branches], dtype=torch.float64)
    mask = TreeMask.of(branches, CPU)
    with calls_cost(-1.0) as split:
        ours = answer(mask, given, fed, scale)
    assert split == [len(branches)]
    whole = answer(torch.tensor(mask.tolist()), given, fed, scale)
    torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12)


def test_the_mask_shows_the_prompt_and_what_the_same_branch_said_before() -> None:
    mask = TreeMask.of([[2, 1, 2, 1]], CPU)
    assert mask[0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        [0, 0, 0, 0, 0, 1],  # padding
    ]
    assert pairs([2, 1, 2]) == 2 * 2 + 1 * 3 + 2 * 4


def test_other_functions_find_an_ordinary_tensor() -> None:
    """So that a mask that was changed can't be mistaken for the tree that it was."""
    mask = TreeMask.of(BRANCHES, CPU)
    for changed in (mask[:, :, :3], ~mask, mask.float(), mask.clone(), mask & True, torch.where(mask, 0.0, -1.0)):
        assert type(changed) is Tensor


def test_few_tokens_are_not_worth_the_calls() -> None:
    def split(branches: list[list[int]]) -> bool:
        with calls_cost(padding.CALL) as seen:
            scaled_dot_product_attention(*states(branches, 9, 9), attn_mask=TreeMask.of(branches, CPU))
        return bool(seen)

    assert not split([[8, 4, 4, 4, 4, 0]])
    assert split([[128, *[128] * 8, 0]])
    assert not split([[400, 0]])  # nothing is hidden


def test_attention_that_drops_or_has_other_keys_is_left_alone() -> None:
    mask = TreeMask.of([[2, 1, 2, 0]], CPU)
    query, key, value = states([[2, 1, 2, 0]], 2, 2)
    with calls_cost(-1.0) as split:
        scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.5)
        with pytest.raises(RuntimeError, match="shape"):
            scaled_dot_product_attention(query[:, :, :1], key, value, attn_mask=mask)
    assert split == []


SEQUENCES = [([5, 6, 7], response) for response in ([1], [2, 3, 4, 8], [], [2, 3])] + [([9], [9, 9]), ([9], [4])]


def slopes(model: PreTrainedModel, *, recompute: bool) -> list[Tensor]:
    with recomputed(model) if recompute else nullcontext():
        found = log_probs(model, SEQUENCES, torch.ones(len(SEQUENCES)))[0]
        weights = torch.linspace(-1, 2, len(found)).to(found)
        return [found, *torch.autograd.grad((found * weights).sum(), list(model.parameters()))]


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize(("make", "tolerance"), [(models.gpt2, 1e-10), (models.llama, 1e-6)], ids=["gpt2", "llama"])
def test_models_attend_branch_by_branch(make: type, tolerance: float, recompute: bool) -> None:
    model = make().double()
    with calls_cost(math.inf) as split:
        whole = slopes(model, recompute=recompute)
    assert split == []
    with calls_cost(-math.inf) as split:
        ours = slopes(model, recompute=recompute)
    assert len(split) == model.config.num_hidden_layers * (1 + recompute)
    torch.testing.assert_close(ours, whole, rtol=0, atol=tolerance)
