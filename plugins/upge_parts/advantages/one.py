"""Every token is good."""

from __future__ import annotations

import torch
from torch import Tensor

from upge import Advantage, View


class One(Advantage):
    """The constant 1: every token is imitated (SFT).

        Â_t = 1

    Shapes: → (), dimensionless. Source: SFT in the unified form, arXiv 2509.04419, table 1.
    """

    def __call__(self, b: View) -> Tensor:
        return torch.ones((), dtype=b.dtype)
