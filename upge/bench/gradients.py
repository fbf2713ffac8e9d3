"""What a training step leaves to its optimizer, and how far two such gradients are apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from upge.run.learning import Learner

Gradients = dict[str, Tensor]
"""By the parameter's name."""


def of_learner(learner: Learner, step: Callable[[], None]) -> Gradients:
    """The gradients that `step`, one of this learner's, leaves to its optimizer."""
    optimization = learner.optimization
    return of_step(step, optimization.strategy.adamw, optimization.model)


def of_step(step: Callable[[], None], optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> Gradients:
    """The gradients of the model that `step` leaves to the optimizer."""
    seen: Gradients = {}

    def look(*_: object) -> None:
        seen.update((name, p.grad.clone()) for name, p in model.named_parameters() if p.grad is not None)

    hook = optimizer.register_step_pre_hook(look)
    try:
        step()
    finally:
        hook.remove()
    return seen


def distance(ours: Gradients, theirs: Gradients) -> float:
    """‖ours − theirs‖ / ‖theirs‖ over all parameters. Raises ValueError where they aren't of the same ones."""
    if ours.keys() != theirs.keys():
        raise ValueError(f"gradients of different parameters: {sorted(ours.keys() ^ theirs.keys())}")
    apart = sum(float((ours[name].double() - theirs[name].double()).square().sum()) for name in theirs)
    return float((apart / sum(float(x.double().square().sum()) for x in theirs.values())) ** 0.5)
