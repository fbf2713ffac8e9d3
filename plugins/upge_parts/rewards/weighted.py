"""Several rewards, added up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from pydantic import Field, model_validator

from upge import AReward, Context, PartError, Problem, Reward, RewardSession, as_list, as_score


class Weighted(Reward):
    """The weighted sum of other rewards.

        R = Σ_i weight_i · R_i

        reward: {use: weighted, rewards: [math, format], weights: [1.0, 0.1]}

    A switch like `success_rate` reads the sum: choose its threshold accordingly.
    Units: those of the rewards. Source: sums of accuracy and format rewards, as in DeepSeek-R1, arXiv 2501.12948.
    """

    rewards: tuple[AReward, ...] = Field(min_length=1, examples=[("exact", "choice")])
    """The rewards: for each, its name, or `use` with parameters."""
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
            yield WeightedSession(self.rewards, sessions, self.weights)


@dataclass(frozen=True)
class WeightedSession:
    """Rewards, their open sessions and their weights."""

    rewards: tuple[Reward, ...]
    sessions: tuple[RewardSession, ...]
    weights: tuple[float, ...]

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        """The sum of each (problem, response text) pair. Raises PartError naming a reward whose scores are none."""
        scores = [_scores(*each, pairs) for each in zip(self.rewards, self.sessions, strict=True)]
        return [
            sum(weight * score for weight, score in zip(self.weights, of_one, strict=True))
            for of_one in zip(*scores, strict=True)
        ]


def _scores(reward: Reward, session: RewardSession, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
    scores = session.score(pairs)
    try:
        return [as_score(score) for score in as_list(scores, len(pairs))]
    except ValueError as error:
        raise PartError(f"{type(reward).__name__} (reward, one of 'weighted') returned {error}", "reward") from error
