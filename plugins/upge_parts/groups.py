"""Statistics of a prompt's group of trajectories, which several parts share."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from torch import Tensor

from upge import LaterParameter, TrajectoryField, View

Over = Literal["rollouts", "all"]
"""Who belongs to a prompt's group: its rollouts, or its rollouts and demonstrations."""


RewardName = Annotated[TrajectoryField, LaterParameter()]
"""The field that holds the trajectories' rewards; `reward` is the verifier's score, shaped for advantages."""


def members(b: View, over: Over, x: Tensor) -> Tensor:
    """(N,) bool: the trajectories that belong to their prompt's group, of those whose x (N,) is known."""
    own = b.rollout if over == "rollouts" else torch.ones_like(b.rollout)
    return own & ~x.isnan()


def deviation(b: View, x: Tensor, group: Tensor) -> Tensor:
    """(N,) x minus its mean over the prompt's `group` (N,) bool; 0 where that has fewer than two, NaN where x is.

    Where the group's x are all equal the deviation of a member is exactly 0, whatever the mean rounds to.
    """
    count = b.per_prompt(group)
    mean = b.per_prompt(x.where(group, 0.0)) / count.clamp(min=1)
    centred = x - b.to_trajectories(mean)
    alike = b.to_trajectories(spread(b, x, group) == 0) & group
    return torch.where((b.to_trajectories(count < 2) | alike) & ~x.isnan(), 0.0, centred)


def spread(b: View, x: Tensor, group: Tensor) -> Tensor:
    """(G,) largest minus smallest x of the prompt's `group` (N,) bool; 0 without members."""
    values, index = x[group], b.prompt[group]
    zeros = torch.zeros_like(b.per_prompt(group))
    largest = zeros.scatter_reduce(0, index, values, "amax", include_self=False)
    return largest - zeros.scatter_reduce(0, index, values, "amin", include_self=False)


def standard_deviation(b: View, x: Tensor, group: Tensor, *, unbiased: bool) -> Tensor:
    """(G,) √(Σ (x − mean)² / (n − 1)), or / n, over the prompt's `group` (N,) bool; 0 where it has fewer than two."""
    scale = power_above(spread(b, x, group))
    squares = ((deviation(b, x, group) / b.to_trajectories(scale)) ** 2).where(group, 0.0)
    freedom = (b.per_prompt(group) - float(unbiased)).clamp(min=1)
    return (b.per_prompt(squares) / freedom).sqrt() * scale


def power_above(x: Tensor) -> Tensor:
    """The power of two above each x > 0, and 1 where x is 0.

    To divide by it changes no digit. So the squares of what is divided sum to the same bits, and they neither overflow
    for scores of 1e30 nor vanish for scores of 1e-30.
    """
    return (x / torch.frexp(x).mantissa).where(x > 0, 1.0)


def success(b: View, of: str) -> Tensor:
    """(G,) P: the mean of the rewards `of` the prompt's rollouts; 0 without any."""
    return b.per_prompt(b.field(of).where(b.rollout, 0.0)) / b.per_prompt(b.rollout).clamp(min=1)
