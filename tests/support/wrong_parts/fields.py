"""Wrong fields. The docstring of each says what is wrong with it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch

from upge import BatchField, Context, Trajectory

ONE_RANK: set[str] = set()
CORNER: set[str] = set()


class Base(BatchField):
    """What the wrong ones share: a session that says the length of each response."""

    per: ClassVar[Literal["token", "trajectory", "prompt"]] = "trajectory"

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        yield type(self).model_construct()

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Any:
        return torch.tensor([self.one(each) for each in trajectories], dtype=torch.float64)

    def one(self, trajectory: Trajectory) -> float:
        return float(len(trajectory.response))


class Sorted(Base):
    """The numbers in their own order."""

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Any:
        return super().read(step, trajectories).sort().values


class Centred(Base):
    """Minus the mean of what is asked together: another in another micro-batch."""

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Any:
        numbers = super().read(step, trajectories)
        return numbers - numbers.mean() if len(numbers) else numbers


class Padded(Base):
    """A number for each place of the longest response asked, padding too."""

    per = "token"

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Any:
        longest = max((len(each.response) for each in trajectories), default=0)
        return torch.ones(len(trajectories) * longest)


class Longer(Base):
    """A number per trajectory, where it says one per token."""

    per = "token"


class Order(Base):
    """Counts how often it was asked."""

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Any:
        self.__dict__["asked"] = self.__dict__.get("asked", 0) + 1
        return super().read(step, trajectories) + self.__dict__["asked"]


class Chance(Base):
    """Draws from the global generator."""

    def one(self, trajectory: Trajectory) -> float:
        return random.random()


class Forgets(Base):
    """Keeps how many rollouts it has seen, and nothing of it in its state."""

    def observe(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        self.__dict__["seen"] = self.__dict__.get("seen", 0) + len(trajectories)

    def one(self, trajectory: Trajectory) -> float:
        return float(self.__dict__.get("seen", 0))

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class Objects(Forgets):
    """A state that no checkpoint can hold."""

    def state(self) -> dict[str, Any]:
        return {"seen": {self.__dict__.get("seen", 0)}}


class Own(Base):
    """A number per trajectory, where it says that a prompt has one."""

    per = "prompt"


class Wide(Base):
    """Two numbers each, without a width that says so."""

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Any:
        numbers = super().read(step, trajectories)
        return torch.stack([numbers, -numbers], 1)


class Wet(Base):
    """Carries gradient."""

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Any:
        return super().read(step, trajectories).requires_grad_()


class Marks(Base):
    """Writes into the problem's columns, which others read."""

    def one(self, trajectory: Trajectory) -> float:
        trajectory.problem.columns["asked"] = True  # type: ignore[index]
        return 1.0
