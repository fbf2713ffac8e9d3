"""The policy over nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from upge import Denominator, View


class One(Denominator):
    """π_ref ≡ 1: the weight is the policy's own probability (DFT; SRFT and LUFFY on demonstrations).

        log π_ref = 0   ⇒   ρ_t = π_θ(t)

    Shapes: → (), nats. Source: the unified form, arXiv 2509.04419; DFT, arXiv 2508.05629.
    """

    def __call__(self, b: View) -> Tensor:
        return torch.zeros((), dtype=b.dtype)
