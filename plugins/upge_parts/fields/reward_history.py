"""The mean rewards of a problem's last visits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from math import fsum, nan
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from upge import BatchField, Context, Trajectory

if TYPE_CHECKING:
    from torch import Tensor


class RewardHistory(BatchField):
    """The mean reward of a problem's rollouts at each of its last visits, newest first.

        field_{q,k} = mean reward of q's rollouts in the k-th last rollout batch that sampled any, before this one

        fields:
          history: {use: reward_history, last: 8}

    It is NaN before the first visit. A visit is a rollout batch with rollouts of the problem. The mean is over all of
    them: of all ranks, of every place that the problem has in the batch, and those that `rollout.refill` replaced. The
    reward is the recipe's, unshaped. A problem is known by its id. Checkpoints keep the history.
    Shapes: (G, last), per prompt. Units: those of the reward. Source: none; it is a means for other methods, such
    as curricula.
    """

    per: ClassVar[Literal["prompt"]] = "prompt"

    last: int = Field(default=1, ge=1, le=1024)
    """The number of visits."""

    def width(self) -> int:
        """`last`."""
        return self.last

    @contextmanager
    def open(self, context: Context) -> Iterator[Visits]:
        del context
        yield Visits(self.last)


class Visits:
    """The visits of each problem by its id, newest first: the rollout batch, and the mean reward in it."""

    def __init__(self, last: int) -> None:
        self.last = last
        self.visits: dict[str, list[tuple[int, float]]] = {}

    def observe(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        """Note a visit of each problem that has rollouts among these."""
        rewards: dict[str, list[float]] = {}
        for each in trajectories:
            rewards.setdefault(each.problem.id, []).append(each.reward)
        for problem, some in rewards.items():
            before = self.visits.get(problem, [])
            # One more than `last`: the fields of this rollout batch are read after it was observed.
            self.visits[problem] = [(step, fsum(some) / len(some)), *before][: self.last + 1]

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """(N, last) mean rewards at the visits before this rollout batch, in float64, a row a trajectory."""
        import torch

        rows = [self._before(step, each.problem.id) for each in trajectories]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), self.last)

    def state(self) -> dict[str, Any]:
        """The visits."""
        return {"visits": {problem: [list(visit) for visit in some] for problem, some in self.visits.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned."""
        visits: dict[str, list[list[float]]] = state["visits"]
        self.visits = {problem: [(int(step), float(mean)) for step, mean in some] for problem, some in visits.items()}

    def _before(self, step: int, problem: str) -> list[float]:
        earlier = (mean for when, mean in self.visits.get(problem, []) if when < step)
        means = list(islice(earlier, self.last))
        return means + [nan] * (self.last - len(means))
