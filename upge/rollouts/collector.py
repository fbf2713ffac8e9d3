"""A rollout batch: the wanted trajectories of its prompts, and fresh prompts in place of those that no term weighs.

A prompt's place in the batch is its group. All ranks have the same problems in the same places, and rank r of w has
the places r, r + w, r + 2w, … to itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from upge.distributed.ranks import Ranks
from upge.model.models import Models
from upge.model.policy import Policy
from upge.part import State
from upge.recipe.schema import Recipe
from upge.rollouts import sessions
from upge.rollouts.fields import OpenFields, open_fields
from upge.rollouts.rollout_batch import RolloutBatch
from upge.rollouts.sampler import PromptedProblem, Sampler
from upge.schedule import at
from upge.types import (
    Context,
    DataSession,
    Problem,
    Sampling,
    Trajectory,
)


@dataclass(frozen=True)
class Collected:
    """This rank's share of a rollout batch.

    Attributes:
        trajectories: those of a group together. counts: what there is to report, over all ranks.
        taken: how many problems the run has taken from the data by now.
    """

    trajectories: list[Trajectory]
    counts: dict[str, float]
    taken: int


@dataclass
class Places:
    """The contents of a rollout batch so far: this rank's trajectories, and all ranks' problems.

    `sampled` has this rank's rollouts by round, those of prompts that were replaced too.
    """

    trajectories: dict[int, list[Trajectory]] = field(default_factory=dict)
    sampled: list[tuple[int, list[Trajectory]]] = field(default_factory=list)
    without: dict[int, Counter[str]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def observed(self, ranks: Ranks) -> list[Trajectory]:
        """All ranks' rollouts in the order of place, round and sample; all of them call it."""
        own = [(each.group, number, each.sample, each) for number, some in self.sampled for each in some]
        return [each for *_, each in sorted(ranks.all_gather(own), key=lambda rollout: rollout[:3])]

    def all(self) -> list[Trajectory]:
        """The trajectories, those of a group together."""
        return [trajectory for group in sorted(self.trajectories) for trajectory in self.trajectories[group]]


Keep = Callable[[list[Trajectory]], None]
"""Logs this rank's samples; all ranks call it together."""


@dataclass(frozen=True)
class Collector:
    """Makes rollout batches.

    Attributes:
        sampler: of rollouts. evaluator: of evaluations, the same unless these have an engine of their own.
        ranks: the data-parallel processes. dtype: of tensors. fields: the recipe's own, open.
    """

    recipe: Recipe
    data: DataSession
    sampler: Sampler
    evaluator: Sampler
    ranks: Ranks
    dtype: torch.dtype = torch.float32
    fields: OpenFields = field(default_factory=OpenFields)

    def collect(self, step: int, taken: int, state: State, keep: Keep) -> Collected:
        """The rollout batch, with rollouts and demonstrations only if a wanted term or a switch needs them.

        Args: step: of the rollout batch. taken: problems taken before it. state: the estimator's. keep: logs samples.
        """
        places = Places()
        counts, taken = self._collected(places, step, taken, state, keep)
        self._observe(places, step)
        return Collected(places.all(), self._counts(places, step) | counts, taken)

    def _collected(
        self, places: Places, step: int, taken: int, state: State, keep: Keep
    ) -> tuple[dict[str, float], int]:
        """Fill the places, and replace prompts that no term weighs; returns counts, and how many problems are taken."""
        prompts = self.recipe.train.prompts
        refill = self.recipe.rollout.refill
        if refill is None or not self.recipe.estimator.wants_rollouts(step):
            self._fill(places, step, dict(enumerate(self.data.take(step, prompts))), keep)
            return {}, taken + prompts
        self._fill(places, step, self._fresh(range(prompts), taken), keep)
        discarded, rounds = 0, 0
        zero_weight = self._zero_weight_prompts(places, step, state)
        while zero_weight and rounds < refill.rounds:
            self._fill(places, step, self._fresh(zero_weight, taken + prompts + discarded), keep)
            discarded, rounds = discarded + len(zero_weight), rounds + 1
            zero_weight = self._zero_weight_prompts(places, step, state)
        counts = {"refill/rounds": rounds, "refill/discarded": discarded, "refill/left": len(zero_weight)}
        return {name: float(count) for name, count in counts.items()}, taken + prompts + discarded

    def _observe(self, places: Places, step: int) -> None:
        """Show the rollouts of all ranks to the sessions that look at them."""
        observers = [*([self.data] if hasattr(self.data, "observe") else []), *self.fields.observers()]
        if observers:
            observed = places.observed(self.ranks)
            for session in observers:
                session.observe(step, observed)

    def _fresh(self, groups: Iterable[int], position: int) -> dict[int, Problem]:
        """The next problems of the data's stream, for these places."""
        return {group: self.data.take(position + index, 1)[0] for index, group in enumerate(groups)}

    def _fill(self, places: Places, step: int, problems: dict[int, Problem], keep: Keep) -> None:
        """Put problems with their trajectories into places, and drop the earlier contents."""
        estimator, settings = self.recipe.estimator, self.recipe.rollout
        prompted_problems = []
        for group, problem in problems.items():
            if group % self.ranks.world == self.ranks.rank:
                # A problem that occurs twice in a rollout batch gets other sample numbers, and so other random numbers.
                time = places.seen[problem.id]
                prompted_problems.append(self.sampler.prompted(problem, group, first=time * settings.n, time=time))
            places.seen[problem.id] += 1
        for prompted in prompted_problems:
            places.trajectories[prompted.group], places.without[prompted.group] = [], Counter()
        if estimator.wants_rollouts(step):
            sampling = Sampling(
                at(settings.temperature, step), settings.top_p, settings.top_k, settings.max_tokens, settings.stop
            )
            fitting = []
            for prompted in prompted_problems:
                if self.sampler.fits(prompted, settings.max_tokens):
                    fitting.append(prompted)
                else:
                    places.without[prompted.group]["prompt"] += 1
            sampled = self.sampler.rollouts(fitting, settings.n, sampling, stream="train", step=step)
            keep(sampled)
            places.sampled.append((len(places.sampled), sampled))
            for trajectory in sampled:
                places.trajectories[trajectory.group].append(trajectory)
        if estimator.wants_demonstrations(step):
            self._show(places, prompted_problems)

    def _show(self, places: Places, prompted_problems: Sequence[PromptedProblem]) -> None:
        """Add the demonstrations of these problems, or what they lack."""
        for prompted, (shown, lack) in zip(
            prompted_problems, self.sampler.demonstrations(prompted_problems), strict=True
        ):
            places.trajectories[prompted.group] += [] if shown is None else [shown]
            places.without[prompted.group].update([] if lack is None else [lack])

    def _zero_weight_prompts(self, places: Places, step: int, state: State) -> list[int]:
        """The places, of all ranks, whose every coefficient is 0."""
        device, seed = self.ranks.accelerator.device, self.recipe.train.seed
        batch = RolloutBatch.of(places.all(), device, self.dtype, seed=seed, step=step).batch
        mine = self.recipe.estimator.idle(batch, step, state=state, reduce=self.ranks.sum)
        groups = torch.unique(batch.group)[mine]
        zero_weight = torch.zeros(self.recipe.train.prompts, device=self.ranks.accelerator.device)
        zero_weight[groups] = 1
        return [int(group) for group in self.ranks.sum(zero_weight).nonzero()[:, 0]]

    def _counts(self, places: Places, step: int) -> dict[str, float]:
        """Prompts that left no room for a response, and demonstrations that could not be had, over all ranks."""
        lacks = sum(places.without.values(), Counter())
        too_long = lacks["too_long"] + lacks["no_room"]
        totals = torch.tensor([lacks["prompt"], lacks["missing"], too_long], device=self.ranks.accelerator.device)
        prompts, missing, long = self.ranks.sum(totals).tolist()
        counts = {}
        if self.recipe.estimator.wants_rollouts(step):
            counts["prompts/too_long"] = prompts
        if self.recipe.estimator.wants_demonstrations(step):
            counts |= {"demonstrations/missing": missing, "demonstrations/too_long": long}
        return counts


@contextmanager
def open_collector(
    recipe: Recipe, policy: Policy, folder: Path, ranks: Ranks, models: Models | None = None
) -> Iterator[Collector]:
    """The collector of a run, with the sessions of data, engines, reward and fields open.

    Args: models: those beside the policy, for fields to ask.
    """
    context = Context(recipe.train.seed, folder, policy, ranks.rank, ranks.world, recipe.rollout.stop)
    with ExitStack() as stack:
        data = stack.enter_context(sessions.opened(recipe.data, "data", recipe.data.open, context))
        engine_of = recipe.rollout.engine
        engine = stack.enter_context(sessions.opened(engine_of, "rollout.engine", engine_of.open, context))
        reward = stack.enter_context(sessions.opened(recipe.reward, "reward", recipe.reward.open, context))
        sampler = evaluator = Sampler.of(recipe, policy, engine, reward)
        if (own_engine := recipe.engine_of_its_own()) is not None:
            examined = stack.enter_context(sessions.opened(own_engine, "eval.engine", own_engine.open, context))
            evaluator = replace(sampler, engine=examined)
        tokens = partial(_prompt_tokens, sampler)
        asking = replace(context, models=models, tokens=tokens)
        fields = stack.enter_context(open_fields(recipe, asking))
        yield Collector(recipe, data, sampler, evaluator, ranks, policy.model.dtype, fields)


def _prompt_tokens(sampler: Sampler, problem: Problem) -> tuple[int, ...]:
    """A problem's prompt by the run's template."""
    return sampler.prompted(problem, 0).prompt
