"""Several rewards, added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pydantic import Field, model_validator

from upge import AReward, Context, Problem, Reward, RewardSession


class Weighted(Reward):
    """The weighted sum of other rewards.

        R = Σ_i weight_i · R_i

        reward: {use: weighted, rewards: [math, format], weights: [1.0, 0.1]}

    A switch like `success_rate` sees the sum: choose its threshold accordingly.
    Units: those of the rewards. Source: sums of accuracy and format rewards, as in DeepSeek-R1, arXiv 2501.12948.
    """

    rewards: tuple[AReward, ...] = Field(min_length=1, examples=[("exact", "choice")])
    """The rewards, each by its name or with its parameters."""
    weights: tuple[float, ...] = Field(min_length=1, examples=[(1.0, 0.1)])
    """A weight for each of them."""

    @model_validator(mode="after")
    def _one_each(self) -> Weighted:
        if len(self.weights) != len(self.rewards):
            self.refuse(("weights",), f"there are {len(self.weights)} weights for {len(self.rewards)} rewards")
        return self

    def refusal(self, problem: Problem) -> str | None:
        """What the first of the rewards that refuses a problem says of it."""
        return next(filter(None, (reward.refusal(problem) for reward in self.rewards)), None)

    @contextmanager
    def open(self, context: Context) -> Iterator[WeightedSession]:
        with ExitStack() as stack:
            sessions = tuple(stack.enter_context(reward.open(context)) for reward in self.rewards)
            yield WeightedSession(sessions, self.weights)


@dataclass(frozen=True)
class WeightedSession:
    """Open rewards and their weights."""

    sessions: tuple[RewardSession, ...]
    weights: tuple[float, ...]

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The sum of each (problem, response text) pair."""
        scores = [session.score(pairs) for session in self.sessions]
        return [
            sum(weight * score for weight, score in zip(self.weights, of_one, strict=True))
            for of_one in zip(*scores, strict=True)
        ]
