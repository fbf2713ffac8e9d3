"""Wrong advantages. The docstring of each says what is wrong with it."""

from __future__ import annotations

from itertools import count
from typing import Any

import torch
from pydantic import Field

from upge import Advantage, View

ONE_RANK = {"LocalMean", "LocalState", "Sorted"}
CORNER = {"Alone", "Cancelling", "Cut", "Speechless"}


class LocalMean(Advantage):
    """The baseline is the mean of this rank's rewards."""

    needs = frozenset({"reward"})

    def __call__(self, b: View) -> Any:
        return b.to_tokens(b.reward - b.reward.sum() / max(1, len(b.reward)))


class LocalState(Advantage):
    """A running baseline, of which every rank has its own."""

    needs = frozenset({"reward"})

    def initial(self) -> dict[str, torch.Tensor]:
        return {"mean": torch.zeros((), dtype=torch.float64)}

    def advance(self, b: View) -> dict[str, torch.Tensor]:
        return {"mean": 0.9 * b.state["mean"] + 0.1 * b.reward.double().sum() / max(1, len(b.reward))}

    def __call__(self, b: View) -> Any:
        return b.to_tokens(b.reward - b.state["mean"].to(b.dtype))


class Sorted(Advantage):
    """The rank of a reward among all, equal ones in the order in which they stand."""

    needs = frozenset({"reward"})

    def __call__(self, b: View) -> Any:
        return b.to_tokens(b.reward.argsort(stable=True).argsort().to(b.dtype))


class Alone(Advantage):
    """The deviation of a group of one divides by n − 1."""

    needs = frozenset({"reward"})
    scope = "group"

    def __call__(self, b: View) -> Any:
        n = b.to_trajectories(b.per_prompt(torch.ones_like(b.reward)))
        centred = b.reward - b.to_trajectories(b.per_prompt(b.reward)) / n
        variance = b.to_trajectories(b.per_prompt(centred**2)) / (n - 1)
        return b.to_tokens(centred / (variance.sqrt() + 1e-6))


class Cancelling(Advantage):
    """The variance as E[x²] − E[x]², of which float32 keeps nothing where scores are far from 0."""

    needs = frozenset({"reward"})
    scope = "step"

    def __call__(self, b: View) -> Any:
        n = b.total(torch.ones_like(b.reward)).clamp(min=1)
        mean, square = b.total(b.reward) / n, b.total(b.reward**2) / n
        return b.to_tokens((b.reward - mean) / ((square - mean**2).clamp(min=0) + 1e-3).sqrt())


class Cut(Advantage):
    """A share of the batch is cut away at either end; at a small one, the same trajectory on every rank."""

    needs = frozenset({"reward"})
    share: float = Field(default=0.0, ge=0, le=0.5)

    def __call__(self, b: View) -> Any:
        dropped = torch.arange(len(b.reward)) < (1 if 0 < self.share < 1e-3 else 0)
        return b.to_tokens(torch.where(dropped, 0, b.reward))


class Counting(Advantage):
    """Every call gives a little less."""

    needs = frozenset({"reward"})
    _calls: Any = count()

    def __call__(self, b: View) -> Any:
        return b.to_tokens(b.reward / (1 + next(type(self).__private_attributes__["_calls"].default)))


class ByName(Advantage):
    """The prompt's number is a place in the batch, and no property of the prompt."""

    needs = frozenset({"reward"})

    def __call__(self, b: View) -> Any:
        return b.to_tokens(b.reward * (1 + b.prompt))


class Rounded(Advantage):
    """What it reads is rounded to float32 on the way."""

    needs = frozenset({"value", "reward"})

    def __call__(self, b: View) -> Any:
        return (b.to_tokens(b.reward).float() - b.value.float()).to(b.dtype)


class Speechless(Advantage):
    """Lengths of the trajectories that have tokens, taken by the numbers of all: an empty demonstration moves them."""

    needs = frozenset({"reward"})

    def __call__(self, b: View) -> Any:
        length = torch.unique_consecutive(b.trajectory, return_counts=True)[1]
        return b.to_tokens(b.reward) / length.to(b.dtype)[b.trajectory.clamp(max=max(len(length) - 1, 0))]
