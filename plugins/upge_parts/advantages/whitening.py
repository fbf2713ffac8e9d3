"""Whitening over all tokens of a rollout batch."""

from __future__ import annotations

import torch
from torch import Tensor

from upge import View
from upge_parts.groups import power_above


def whitened(b: View, x: Tensor, *, unbiased: bool = True, epsilon: float = 1e-8) -> Tensor:
    """(T,) (x − mean)/√(var + epsilon) over the tokens of the term's rows, on all ranks.

    Exactly 0 where all x are the same: what they differ by is then rounding, and must not be blown up.
    """
    counted = b.to_tokens(b.rows.to(x))
    count = b.total(counted)
    # Each sum is made in the type of the batch before `total` adds in float64: so runs keep the bytes they always had.
    mean = b.total(x.where(counted > 0, 0.0).sum()) / count.clamp(min=1)
    centred = x - mean
    scale = power_above(b.total(centred.abs().where(counted > 0, 0.0).sum()) / count.clamp(min=1))
    squares = ((centred / scale) ** 2).where(counted > 0, 0.0)
    variance = b.total(squares.sum()) / (count - float(unbiased)).clamp(min=1)  # in units of scale²
    rounding = 64 * torch.finfo(x.dtype).eps * mean.abs()
    alike = variance.sqrt() * scale <= rounding
    return torch.where(alike, 0.0, centred / _root(variance, epsilon, scale))


def _root(variance: Tensor, epsilon: float, scale: Tensor) -> Tensor:
    """√(variance·scale² + epsilon), where scale² may be beyond all numbers."""
    added = variance.new_tensor(epsilon) / scale / scale
    # Beside an epsilon that is beyond all numbers in units of scale² the variance is nothing.
    return torch.where(added.isinf(), epsilon**0.5, (variance + added).sqrt() * scale)
