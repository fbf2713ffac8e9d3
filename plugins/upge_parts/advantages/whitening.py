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
    mean = b.total(x * counted) / count.clamp(min=1)
    centred = x - mean
    scale = power_above(b.total(centred.abs() * counted) / count.clamp(min=1))
    scaled = centred / scale
    variance = b.total((scaled**2).where(counted > 0, 0.0)) / (count - float(unbiased)).clamp(min=1)
    added = x.new_tensor(epsilon) / scale / scale
    # Of deviations so small that epsilon is beyond all numbers in their scale, the variance adds nothing to it.
    least = centred / epsilon**0.5 if epsilon else torch.zeros_like(x)
    white = torch.where(added.isinf(), least, scaled / (variance + added).sqrt())
    rounding = 64 * torch.finfo(x.dtype).eps * mean.abs()
    return torch.where(variance.sqrt() * scale <= rounding, 0.0, white)
