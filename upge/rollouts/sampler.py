"""From problems to trajectories: prompts are put to an engine, responses and demonstrations are scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from upge.errors import ModelError
from upge.model.chat_template import Prompt, Templater
from upge.model.policy import Policy
from upge.recipe.schema import Recipe
from upge.types import (
    Completion,
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
class Sampler:
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

    @classmethod
    def of(cls, recipe: Recipe, policy: Policy, engine: EngineSession, reward: RewardSession) -> Sampler:
        """That of a recipe, with what is open of it."""
        return cls(
            policy.templater(recipe.data.template, recipe.data.system),
            engine,
            reward,
            recipe.train.demonstration_tokens or recipe.rollout.max_tokens,
            zero_truncated=recipe.rollout.truncated == "zero_reward",
            context=policy.context_length,
        )

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
