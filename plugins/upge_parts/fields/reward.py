"""A second score of each response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from upge import AReward, BatchField, Context, Problem, Response, Reward, RewardSession, Trajectory, opened

if TYPE_CHECKING:
    from torch import Tensor


class RewardField(BatchField):
    """The score of each response by another reward than the recipe's.

        field_i = R(problem_i, response_i)

        fields:
          format: {use: reward, reward: format}

    Rollouts and demonstrations are scored by the text of their tokens, as the recipe's `reward` scores them. The score
    of a response that was cut at the budget stays, also with `rollout.truncated: zero_reward`. It is NaN for a problem
    that the reward refuses, for example because it has no answer; the metric `fields/<name>/missing` counts these.
    Shapes: (N,), per trajectory. Units: those of the reward. Source: several rewards that are normalised apart, as in
    GDPO, arXiv 2601.05242.
    """

    per: ClassVar[Literal["trajectory"]] = "trajectory"

    reward: AReward = Field(examples=["exact"])
    """The reward: its name, or `use` with parameters."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Scored]:
        own = replace(context, place=f"{context.place}.reward")
        with opened(self.reward, own.place, self.reward.open, own) as session:
            yield Scored(self.reward, session)


@dataclass(frozen=True)
class Scored:
    """A reward and its open session."""

    reward: Reward
    session: RewardSession

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """(N,) scores, in float64; NaN where the reward refuses the problem."""
        import torch

        del step
        refused = self._refused(trajectories)
        rows = [row for row, each in enumerate(trajectories) if each.problem.id not in refused]
        pairs: list[tuple[Problem, str]] = [
            (each.problem, Response(each.text, each.opening)) for each in (trajectories[row] for row in rows)
        ]
        scores = torch.full((len(trajectories),), torch.nan, dtype=torch.float64)
        if pairs:
            scores[rows] = torch.tensor(self.session.score(pairs), dtype=torch.float64)
        return scores

    def _refused(self, trajectories: Sequence[Trajectory]) -> set[str]:
        """The ids of problems that the reward can't score responses to."""
        problems = {each.problem.id: each.problem for each in trajectories}
        return {name for name, problem in problems.items() if self.reward.refusal(problem) is not None}
