"""Wrong shapings. The docstring of each says what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from pydantic import Field

from upge import Shaping, View

ONE_RANK = {"Relative", "FirstOnly"}
CORNER = {"NoRoom", "Exploding", "Late", "Unclamped"}


class Relative(Shaping):
    """Lengths over the mean length of this rank."""

    def __call__(self, b: View) -> Any:
        return -b.to_tokens(b.length * len(b.length) / b.length.sum().clamp(min=1))


class FirstOnly(Shaping):
    """The first token of the batch is charged, and not that of each trajectory."""

    def __call__(self, b: View) -> Any:
        return -(torch.arange(len(b.trajectory)) == 0).to(b.dtype)


class NoRoom(Shaping):
    """Divides by the room between its bounds, which may be none."""

    soft: int = Field(default=2, ge=0, le=8)
    hard: int = Field(default=4, ge=0, le=8)

    def __call__(self, b: View) -> Any:
        return -b.to_tokens((b.length - self.soft) / (self.hard - self.soft)).clamp(0, 1)


class Exploding(Shaping):
    """exp of a length, and again away: inf/inf in long responses, in float32 in shorter ones."""

    def __call__(self, b: View) -> Any:
        grown = torch.exp(b.length)
        return -b.to_tokens(grown / (1 + grown))


class Late(Shaping):
    """Right until the thousandth rollout batch, at which the factor is infinite."""

    factor: float = Field(default=1.0, ge=1, le=2)

    def __call__(self, b: View) -> Any:
        return -b.to_tokens(b.length * (torch.tensor(self.factor, dtype=b.dtype) * 1.5) ** (2 * b.step))


class Square(Shaping):
    """A matrix, where a number per token is due."""

    def __call__(self, b: View) -> Any:
        return -b.to_tokens(b.length)[:, None]


class Numpy(Shaping):
    """Draws from numpy's generator."""

    def __call__(self, b: View) -> Any:
        return torch.from_numpy(numpy.random.rand(len(b.trajectory))).to(b.dtype)


class Flipping(Shaping):
    """It turns the batch's flags over, and back only where it has a rollout."""

    needs = frozenset({"truncated"})

    def __call__(self, b: View) -> Any:
        b.truncated.logical_or_(b.demonstration)
        return -b.to_tokens(b.truncated.to(b.dtype))


class Unclamped(Shaping):
    """A k3 penalty whose exp is infinite in float32, once the reference finds a token e⁹⁰ times likelier."""

    needs = frozenset({"old_logp", "reference_logp"})

    def __call__(self, b: View) -> Any:
        gap = b.reference_logp - b.old_logp
        return -0.1 * (gap.exp() - gap - 1)
