"""From problems to trajectories: responses sampled and scored, demonstrations added, idle prompts replaced."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from upge.model import ModelError, Prompt, Templater
from upge.part import State
from upge.recipe import Recipe
from upge.rollouts.rollout_batch import RolloutBatch
from upge.schedule import at
from upge.types import (
    Completion,
    DataSession,
    EngineSession,
    Problem,
    Request,
    Response,
    RewardSession,
    Sampling,
    Trajectory,
)

Lack = Literal["missing", "too_long", "no_room"]
"""Why there is no demonstration: the problem has none; it is over the token budget; over what the context leaves."""


@dataclass(frozen=True)
class Asked:
    """A problem in its place of the rollout batch, `group`; its samples are numbered from `first`.

    Attributes: prompt: its ids. put: the same with its text, where it was put to a model.
    """

    problem: Problem
    group: int
    prompt: tuple[int, ...]
    first: int = 0
    put: Prompt | None = None

    @property
    def opening(self) -> str:
        """How the prompt begins the response itself."""
        return "" if self.put is None else self.put.opening

    @property
    def repeated(self) -> bool:
        """Whether the demonstration begins with what the prompt has opened already."""
        text = self.problem.demonstration
        return self.put is not None and bool(text) and self.put.repeated(text or "") > 0


@dataclass(frozen=True)
class Collector:
    """Makes trajectories of problems.

    Attributes:
        templater: text ↔ tokens. engine, reward: open sessions.
        demonstration_tokens: a longer demonstration is left out and counted.
        zero_truncated: rollouts cut at the budget score 0.
        context: the most tokens, prompt and response together, that the model has positions for; None: no limit.
    """

    templater: Templater
    engine: EngineSession
    reward: RewardSession
    demonstration_tokens: int
    zero_truncated: bool = False
    context: int | None = None

    def ask(self, problem: Problem, group: int, *, first: int = 0) -> Asked:
        """The problem as the policy will read it."""
        put = self.templater.put(problem)
        return Asked(problem, group, put.tokens, first, put)

    def fits(self, asked: Asked, response: int) -> bool:
        """Whether the model has room for `response` tokens after the prompt."""
        return self.context is None or len(asked.prompt) + response <= self.context

    def rollouts(
        self, asked: Sequence[Asked], n: int, sampling: Sampling, *, stream: str, step: int
    ) -> list[Trajectory]:
        """`n` scored responses to each problem, in the order of the problems."""
        wanted = [(each, each.first + sample) for each in asked for sample in range(n)]
        return self.sampled(wanted, sampling, stream=stream, step=step)

    def sampled(
        self, wanted: Sequence[tuple[Asked, int]], sampling: Sampling, *, stream: str, step: int
    ) -> list[Trajectory]:
        """A scored response for each (problem, sample), in their order."""
        requests = [Request(stream, step, each.problem.id, sample, each.prompt) for each, sample in wanted]
        completions = [self._ended(each, sampling.stop) for each in self.engine.sample(requests, sampling)]
        texts = [
            Response(self.templater.text(completion.tokens), each.opening)
            for (each, _), completion in zip(wanted, completions, strict=True)
        ]
        scores = self.reward.score([(each.problem, text) for (each, _), text in zip(wanted, texts, strict=True)])
        if self.zero_truncated:
            scores = [0.0 if c.truncated else score for c, score in zip(completions, scores, strict=True)]
        return [
            _rollout(each, request.sample, completion, text, score)
            for (each, _), request, completion, text, score in zip(
                wanted, requests, completions, texts, scores, strict=True
            )
        ]

    def demonstrations(self, asked: Sequence[Asked]) -> list[tuple[Trajectory | None, Lack | None]]:
        """For each problem its scored demonstration, or what it lacks.

        A demonstration is scored by the text of its tokens, as a rollout is.
        """
        responses = [self.response(each) for each in asked]
        lacks = [self.lack(each, response) for each, response in zip(asked, responses, strict=True)]
        texts = [
            Response(self.templater.text(response), each.opening)
            for each, response, lack in zip(asked, responses, lacks, strict=True)
            if lack is None
        ]
        shown = [each.problem for each, lack in zip(asked, lacks, strict=True) if lack is None]
        scored = iter(list(zip(texts, self.reward.score(list(zip(shown, texts, strict=True))), strict=True)))
        return [
            (_demonstration(each, response, *next(scored)), None) if lack is None else (None, lack)
            for each, response, lack in zip(asked, responses, lacks, strict=True)
        ]

    def response(self, asked: Asked) -> tuple[int, ...]:
        """A demonstration's tokens; none where there is none, or nothing in it. Raises ModelError."""
        if not asked.problem.demonstration:
            return ()
        try:
            return self.templater.response(asked.problem.demonstration, asked.put)
        except ModelError as error:
            raise ModelError(f"problem {asked.problem.id}: {error}") from error

    def lack(self, asked: Asked, response: Sequence[int]) -> Lack | None:
        """Why a demonstration of these tokens is left out; None where it isn't."""
        if not response:
            return "missing"
        if len(response) > self.demonstration_tokens:
            return "too_long"
        return None if self.fits(asked, len(response)) else "no_room"

    def _ended(self, completion: Completion, stop: Sequence[str]) -> Completion:
        """A completion up to the token that completes a stop string, whatever the engine made of these."""
        end = self.templater.decoder.end(completion.tokens, stop)
        if end is None:
            return completion
        logp = None if completion.logp is None else completion.logp[:end]
        return Completion(completion.tokens[:end], logp, truncated=False)


def _rollout(asked: Asked, sample: int, completion: Completion, text: str, score: float) -> Trajectory:
    return Trajectory(
        problem=asked.problem,
        prompt=asked.prompt,
        response=completion.tokens,
        text=str(text),
        reward=score,
        demonstration=False,
        truncated=completion.truncated,
        sample=sample,
        rollout_logp=completion.logp,
        opening=asked.opening,
        group=asked.group,
    )


def _demonstration(asked: Asked, response: tuple[int, ...], text: str, score: float) -> Trajectory:
    return Trajectory(
        asked.problem,
        asked.prompt,
        response,
        str(text),
        score,
        demonstration=True,
        opening=asked.opening,
        group=asked.group,
    )


@dataclass(frozen=True)
class Assembled:
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
    """What stands in the places of a rollout batch so far: this rank's trajectories, and all ranks' problems."""

    trajectories: dict[int, list[Trajectory]] = field(default_factory=dict)
    without: dict[int, Counter[str]] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def all(self) -> list[Trajectory]:
        """The trajectories, those of a group together."""
        return [each for group in sorted(self.trajectories) for each in self.trajectories[group]]


@dataclass(frozen=True)
class Assembler:
    """Makes rollout batches.

    Attributes:
        keep: logs sampled trajectories (all ranks call it together). total: sums a tensor over ranks.
        rank, world: this process among the data-parallel ones. device, dtype: of tensors.
    """

    recipe: Recipe
    data: DataSession
    collector: Collector
    keep: Callable[[int, list[Trajectory]], None]
    total: Callable[[Tensor], Tensor]
    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def assemble(self, step: int, taken: int, state: State) -> Assembled:
        """What the wanted terms weigh, or a switch must see, and no more.

        Args: step: of the rollout batch. taken: problems taken before it. state: the estimator's.
        """
        prompts, places = self.recipe.train.prompts, Places()
        refill = self.recipe.rollout.refill
        if refill is None or not self.recipe.estimator.wants_rollouts(step):
            self._fill(places, step, dict(enumerate(self.data.take(step, prompts))))
            return Assembled(places.all(), self._counts(places, step), taken + prompts)
        self._fill(places, step, self._fresh(range(prompts), taken))
        discarded, rounds = 0, 0
        idle = self._idle(places, step, state)
        while idle and rounds < refill.rounds:
            self._fill(places, step, self._fresh(idle, taken + prompts + discarded))
            discarded, rounds = discarded + len(idle), rounds + 1
            idle = self._idle(places, step, state)
        counts = {"refill/rounds": rounds, "refill/discarded": discarded, "refill/left": len(idle)}
        counted = self._counts(places, step) | {name: float(count) for name, count in counts.items()}
        return Assembled(places.all(), counted, taken + prompts + discarded)

    def _fresh(self, groups: Iterable[int], position: int) -> dict[int, Problem]:
        """The next problems of the data's stream, for these places."""
        return {group: self.data.take(position + index, 1)[0] for index, group in enumerate(groups)}

    def _fill(self, places: Places, step: int, problems: dict[int, Problem]) -> None:
        """Put problems, with their trajectories, into places; what stood there is forgotten."""
        estimator, settings = self.recipe.estimator, self.recipe.rollout
        asked = []
        for group, problem in problems.items():
            if group % self.world == self.rank:
                # A problem asked again in one rollout batch draws other noise.
                asked.append(self.collector.ask(problem, group, first=places.seen[problem.id] * settings.n))
            places.seen[problem.id] += 1
        for each in asked:
            places.trajectories[each.group], places.without[each.group] = [], Counter()
        if estimator.wants_rollouts(step):
            sampling = Sampling(
                at(settings.temperature, step), settings.top_p, settings.top_k, settings.max_tokens, settings.stop
            )
            fitting = []
            for each in asked:
                if self.collector.fits(each, settings.max_tokens):
                    fitting.append(each)
                else:
                    places.without[each.group]["prompt"] += 1
            sampled = self.collector.rollouts(fitting, settings.n, sampling, stream="train", step=step)
            self.keep(step, sampled)
            for trajectory in sampled:
                places.trajectories[trajectory.group].append(trajectory)
        if estimator.wants_demonstrations(step):
            self._show(places, asked)

    def _show(self, places: Places, asked: Sequence[Asked]) -> None:
        """Add the demonstrations of these problems, or what they lack."""
        for each, (shown, lack) in zip(asked, self.collector.demonstrations(asked), strict=True):
            places.trajectories[each.group] += [] if shown is None else [shown]
            places.without[each.group].update([] if lack is None else [lack])

    def _idle(self, places: Places, step: int, state: State) -> list[int]:
        """The places, of all ranks, whose every coefficient is 0."""
        batch = RolloutBatch.of(places.all(), self.device, self.dtype).batch
        mine = self.recipe.estimator.idle(batch, step, state=state, reduce=self.total)
        groups = torch.unique(batch.group)[mine]
        idle = torch.zeros(self.recipe.train.prompts, device=self.device)
        idle[groups] = 1
        return [int(group) for group in self.total(idle).nonzero()[:, 0]]

    def _counts(self, places: Places, step: int) -> dict[str, float]:
        """Prompts that left no room for a response, and demonstrations that could not be had, over all ranks."""
        lacks = sum(places.without.values(), Counter())
        too_long = lacks["too_long"] + lacks["no_room"]
        found = torch.tensor([lacks["prompt"], lacks["missing"], too_long], device=self.device)
        prompts, missing, long = self.total(found).tolist()
        counts = {}
        if self.recipe.estimator.wants_rollouts(step):
            counts["prompts/too_long"] = prompts
        if self.recipe.estimator.wants_demonstrations(step):
            counts |= {"demonstrations/missing": missing, "demonstrations/too_long": long}
        return counts
