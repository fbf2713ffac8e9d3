"""Wrong weights. The docstring of each says what is wrong with it."""

from __future__ import annotations

from typing import Any

import torch

from upge import View, Weight

ONE_RANK = {"MeanScore", "LocalState"}
CORNER = {"Unbounded"}


class MeanScore(Weight):
    """The mean is that of this rank."""

    needs = frozenset({"reward"})

    def __call__(self, b: View) -> Any:
        return b.reward.mean() if len(b.reward) else b.reward.new_zeros(())


class PerToken(Weight):
    """It has a number for each token."""

    needs = frozenset({"reward"})

    def __call__(self, b: View) -> Any:
        return b.to_tokens(b.reward)


class Chance(Weight):
    """A random weight, by torch's own generator."""

    def __call__(self, b: View) -> Any:
        return torch.rand(())


class Undeclared(Weight):
    """It reads rewards and doesn't say so."""

    def __call__(self, b: View) -> Any:
        return b.total(b.reward)


class LocalState(Weight):
    """Its state is a sum over this rank."""

    needs = frozenset({"reward"})

    def initial(self) -> dict[str, Any]:
        return {"sum": torch.zeros((), dtype=torch.float64)}

    def advance(self, b: View) -> dict[str, Any]:
        return {"sum": b.state["sum"] + b.reward.sum()}

    def __call__(self, b: View) -> Any:
        return 1 + b.state["sum"] ** 2


class Unbounded(Weight):
    """Before the first batch it divides by 0."""

    needs = frozenset({"reward"})

    def initial(self) -> dict[str, Any]:
        return {"count": torch.zeros((), dtype=torch.float64)}

    def advance(self, b: View) -> dict[str, Any]:
        return {"count": b.state["count"] + b.total(b.reward.abs())}

    def __call__(self, b: View) -> Any:
        return 1 / b.state["count"]
