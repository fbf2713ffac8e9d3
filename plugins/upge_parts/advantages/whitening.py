"""Whitening over all tokens of a rollout batch."""

from __future__ import annotations

import torch
from torch import Tensor

from upge import View


def whitened(b: View, x: Tensor, *, unbiased: bool = True, epsilon: float = 1e-8) -> Tensor:
    """(T,) (x − mean)/√(var + epsilon) over the tokens of the term's rows, on all ranks.

    Exactly 0 where all x are the same: what they differ by is then rounding, and must not be blown up.
    """
    counted = b.to_tokens(b.rows.to(x))
    count = b.total(counted)
    mean = b.total(x * counted) / count.clamp(min=1)
    centred = x - mean
    variance = b.total(centred**2 * counted) / (count - float(unbiased)).clamp(min=1)
    rounding = 64 * torch.finfo(x.dtype).eps * mean.abs()
    return torch.where(variance.sqrt() <= rounding, 0.0, centred / (variance + epsilon).sqrt())
