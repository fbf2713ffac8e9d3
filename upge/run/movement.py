"""Whether an optimizer step moves the weights: a step that is small beside a weight's last digit is rounded away."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor, nn

PER_TENSOR = 1024
"""Weights of each tensor that are looked at."""

UPDATES = 3
"""How many of a run's updates, and how many of its rollout batches once the warm-up is over, are looked at."""


class Movement:
    """Some weights as they were before a step: of each tensor evenly spaced ones, where their gradient isn't 0."""

    def __init__(self, weights: Sequence[tuple[nn.Parameter, Tensor, Tensor]]) -> None:
        self._weights = weights

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Of the parameters that have a gradient here."""
        return cls([(each, _some(each), _some(each.grad) != 0) for each in model.parameters() if each.grad is not None])

    def counts(self) -> tuple[float, float]:
        """How many of them are others now, and how many there are."""
        pairs = [((_some(each) != before)[pushed], pushed) for each, before, pushed in self._weights]
        return float(sum(moved.sum() for moved, _ in pairs)), float(sum(pushed.sum() for _, pushed in pairs))


@torch.no_grad()
def _some(x: Tensor) -> Tensor:
    """Evenly spaced numbers of a tensor; of one that is divided over ranks, of this rank's part."""
    local = x.to_local() if hasattr(x, "to_local") else x
    flat = local.detach().flatten()
    return flat[:: max(1, flat.numel() // PER_TENSOR)][:PER_TENSOR].clone()
