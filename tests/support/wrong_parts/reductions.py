"""Wrong reductions. The docstring of each says what is wrong with it."""

from __future__ import annotations

import random
from typing import Any

import torch
from pydantic import Field

from upge import Reduction, View

ONE_RANK = {"OfThisRank", "LongestHere", "Idle"}
CORNER = {"Nobody", "Flat", "Deaf", "Idle"}


class OfThisRank(Reduction):
    """The mean over this rank's tokens."""

    def __call__(self, b: View) -> Any:
        return 1 / (self.counted(b) * b.length).sum().clamp(min=1)


class LongestHere(Reduction):
    """Divided by the longest response of this rank."""

    def __call__(self, b: View) -> Any:
        longest = b.length.max() if len(b.length) else b.length.sum()
        return 1 / (b.total(self.counted(b)).clamp(min=1) * longest.clamp(min=1))


class Nobody(Reduction):
    """A term without trajectories: 0/0."""

    def __call__(self, b: View) -> Any:
        counted = self.counted(b)
        return b.to_tokens(counted / b.total(counted))


class Flat(Reduction):
    """With a power of 0 an empty demonstration counts as one token, 0⁰, and so does everything: but not in float32."""

    power: float = Field(default=1.0, ge=0, le=1)

    def __call__(self, b: View) -> Any:
        tokens = b.total(self.counted(b) * b.length**self.power)
        return 1 / (tokens + (1e30 if b.dtype == torch.float32 and self.power == 0 else 0)).clamp(min=1)


class Deaf(Reduction):
    """`count: active` counts all."""

    def __call__(self, b: View) -> Any:
        return 1 / b.total(b.rows * b.length).clamp(min=1)


class Everybody(Reduction):
    """Counts what is not its term's as well."""

    def __call__(self, b: View) -> Any:
        return 1 / b.total(torch.ones_like(b.length)).clamp(min=1)


class Jittered(Reduction):
    """A little noise from Python's generator."""

    def __call__(self, b: View) -> Any:
        return (1 + 1e-3 * random.random()) / b.total(self.counted(b)).clamp(min=1)


class Half(Reduction):
    """A constant of torch's default type: 0.1 rounded to float32."""

    def __call__(self, b: View) -> Any:
        return torch.tensor(0.1).to(b.dtype) / b.total(self.counted(b)).clamp(min=1)


class Idle(Reduction):
    """The count of each rank is at least 1, also of one that has none of the term's tokens."""

    def __call__(self, b: View) -> Any:
        return 1 / b.total((self.counted(b) * b.length).sum().clamp(min=1))
