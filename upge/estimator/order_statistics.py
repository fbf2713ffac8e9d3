"""Exact order statistics over all ranks, by sums alone: no rank sends its numbers to another.

A float's bits, read as an integer, have the float's order. The k-th smallest is found digit by digit, from the highest:
every rank counts how many of its candidates have each digit, the counts are summed, and the digit that the k-th falls
on is kept. All ranks make the same sums, whatever numbers they have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

DIGIT = 8
"""Bits of a digit: 4 sums for float32, 8 for float64 and for integers."""

Sum = Callable[[Tensor], Tensor]
"""Adds a tensor over all ranks."""


def quantile(x: Tensor, q: float | Tensor, where: Tensor, total: Sum) -> Tensor:
    """(): the q-quantile of the numbers that `where` marks on all ranks, between neighbours linearly; 0 of none."""
    count = total(where.sum(dtype=torch.float64))
    position = (torch.as_tensor(q, dtype=torch.float64, device=x.device) * (count - 1)).clamp(min=0)
    below = position.floor()
    found = kth(x, torch.stack([below, position.ceil()]), where, total)
    low, high = found.double()
    between = torch.where(low == high, low, low + (position - below) * (high - low))
    return torch.where(count > 0, between, 0).to(x.dtype)


def top(x: Tensor, count: float | Tensor, where: Tensor, ties: Tensor, total: Sum) -> Tensor:
    """bool like x: the `count` largest on all ranks of those that `where` marks; of equal ones those of least `ties`.

    `ties` are integers that tell all numbers apart.
    """
    there = total(where.sum(dtype=torch.float64))
    count = torch.as_tensor(count, dtype=torch.float64, device=x.device).floor()
    count = torch.minimum(count.clamp(min=0), there)
    bound = kth(x, (there - count).clamp(max=(there - 1).clamp(min=0))[None], where, total)[0]
    above, equal = where & (x > bound), where & (x == bound)
    missing = count - total(above.sum(dtype=torch.float64))
    last = kth(ties, (missing - 1).clamp(min=0)[None], equal, total)[0]
    return above | (equal & (ties <= last) & (missing > 0))


def kth(x: Tensor, ranks: Tensor, where: Tensor, total: Sum) -> Tensor:
    """(R,) for each of `ranks` (R,), from 0, the number of that rank, from the smallest, of those that `where` marks.

    Anything where there are too few.
    """
    ordered, bits = _ordered(x)
    candidates = where.expand(len(ranks), -1)
    found = torch.zeros_like(ranks, dtype=torch.int64)
    for shift in range(bits - DIGIT, -1, -DIGIT):
        digits = (ordered >> shift) & (2**DIGIT - 1)
        counts = ranks.new_zeros(len(ranks), 2**DIGIT)
        counts = total(counts.index_add_(1, digits, candidates.to(ranks.dtype)))
        upto = counts.cumsum(1)
        digit = (upto <= ranks[:, None]).sum(1).clamp(max=2**DIGIT - 1)
        ranks = ranks - (upto - counts).gather(1, digit[:, None])[:, 0]
        candidates = candidates & (digits == digit[:, None])
        found = (found << DIGIT) | digit
    return _restored(found, x.dtype, bits)


def _ordered(x: Tensor) -> tuple[Tensor, int]:
    """Integers whose lowest bits, without sign, have the order of x; and how many bits these are."""
    if x.dtype == torch.float32:
        return _flipped((x + 0.0).view(torch.int32)).long() ^ (1 << 31), 32
    signed = _flipped((x + 0.0).view(torch.int64)) if x.dtype == torch.float64 else x.long()
    return signed ^ torch.iinfo(torch.int64).min, 64


def _restored(found: Tensor, dtype: torch.dtype, bits: int) -> Tensor:
    """The numbers that have these bits."""
    if bits == 32:
        return _flipped((found ^ (1 << 31)).to(torch.int32)).view(dtype)
    signed = found ^ torch.iinfo(torch.int64).min
    return _flipped(signed).view(dtype) if dtype == torch.float64 else signed.to(dtype)


def _flipped(bits: Tensor) -> Tensor:
    """Of a float's bits those of a signed integer in the float's order; its own inverse."""
    return torch.where(bits < 0, bits ^ torch.iinfo(bits.dtype).max, bits)
