"""No mask."""

from __future__ import annotations

import torch
from torch import Tensor

from upge import Mask, View


class NoMask(Mask):
    """Every token keeps its weight.

        mask_t = 1

    Shapes: → (), dimensionless. Source: the plain policy gradient, Williams 1992.
    """

    trust_region = True

    def __call__(self, b: View) -> Tensor:
        return torch.ones((), dtype=b.dtype)
