"""Wrong selections. The docstring of each says what is wrong with it."""

from __future__ import annotations

import time
from typing import Any

import torch

from upge import Selection, View

ONE_RANK = {"UpperHalf", "ManyRows", "LocalCount"}
CORNER = {"EmptyMean"}


class UpperHalf(Selection):
    """The median is that of this rank, though it says `step`."""

    scope = "step"
    needs = frozenset({"entropy"})

    def __call__(self, b: View) -> Any:
        return b.entropy >= (b.entropy.median() if len(b.entropy) else 0.0)


class Undeclared(Selection):
    """It reads the entropy and doesn't say so."""

    def __call__(self, b: View) -> Any:
        return b.entropy > 1.0


class Numbers(Selection):
    """It returns numbers and not bool."""

    def __call__(self, b: View) -> Any:
        return (b.advantage > 0).to(b.dtype)


class Prompts(Selection):
    """It has a value for each prompt."""

    needs = frozenset({"reward"})

    def __call__(self, b: View) -> Any:
        return b.per_prompt(b.score) > 0


class Coin(Selection):
    """Half of the tokens, by torch's own generator."""

    def __call__(self, b: View) -> Any:
        return torch.rand(b.advantage.shape) < 0.5


class Turned(Selection):
    """It turns everybody's advantage around, in place."""

    def __call__(self, b: View) -> Any:
        return b.advantage.neg_() > 0


class Previous(Selection):
    """The token before the first one is another trajectory's last."""

    def __call__(self, b: View) -> Any:
        return b.advantage.roll(1) > 0


class Narrow(Selection):
    """Its quantile is over the step, and it says `token`."""

    def __call__(self, b: View) -> Any:
        return b.advantage > b.quantile(b.advantage, 0.5)


class ManyRows(Selection):
    """Its bound depends on how many trajectories this rank has."""

    def __call__(self, b: View) -> Any:
        return b.advantage > 1 / b.rows.sum().clamp(min=1) - 0.2


class LocalCount(Selection):
    """Its state counts the trajectories of this rank."""

    def initial(self) -> dict[str, Any]:
        return {"count": torch.zeros((), dtype=torch.float64)}

    def advance(self, b: View) -> dict[str, Any]:
        return {"count": b.state["count"] + b.rows.sum()}

    def __call__(self, b: View) -> Any:
        return b.noise * 100 > b.state["count"]


class Unread(Selection):
    """It declares a field that it never reads."""

    needs = frozenset({"rollout_logp"})

    def __call__(self, b: View) -> Any:
        return b.advantage > 0


class Clock(Selection):
    """Another second, other tokens."""

    def __call__(self, b: View) -> Any:
        return b.noise < time.time() % 1e6 / 1e6


class EmptyMean(Selection):
    """It raises where there is no token."""

    def __call__(self, b: View) -> Any:
        return b.advantage > b.advantage[0]


class Swapped(Selection):
    """Two dimensions where one is owed."""

    def __call__(self, b: View) -> Any:
        return (b.advantage > 0)[None]
