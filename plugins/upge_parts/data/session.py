"""The data sessions that the data parts here share: without state, and problems in memory, in seeded order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from upge import Problem
from upge_parts.data.order import positions


class Stateless:
    """What sessions share whose order follows from the step and the seed alone: named splits, and nothing to save."""

    evaluation: Mapping[str, Sequence[Problem]]

    def splits(self) -> Sequence[str]:
        """The names of the evaluation splits."""
        return tuple(self.evaluation)

    def split(self, name: str) -> Sequence[Problem]:
        """The problems of an evaluation split."""
        return self.evaluation[name]

    def state(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up a saved state, which is empty."""


@dataclass(frozen=True)
class InMemory(Stateless):
    """Problems to train on and splits to evaluate on. What comes when depends on the step and the seed alone."""

    training: Sequence[Problem]
    evaluation: Mapping[str, Sequence[Problem]]
    seed: int

    def take(self, step: int, count: int) -> list[Problem]:
        """The problems of one rollout batch."""
        return [self.training[index] for index in positions(len(self.training), self.seed, step, count)]
