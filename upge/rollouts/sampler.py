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
class PromptedProblem:
    """A problem with its prompt's token ids.

    Attributes:
        group: its place in the rollout batch.
        prompt: the prompt's ids.
        first: the number of its first sample.
        put: the prompt as the template gave it, with its text; None without a template.
        time: how often the problem stood in the rollout batch before.
    """

    problem: Problem
    group: int
    prompt: tuple[int, ...]
    first: int = 0
    put: Prompt | None = None
    time: int = 0

    @property
    def opening(self) -> str:
        """The beginning of the response in the prompt."""
        return "" if self.put is None else self.put.opening

    @property
    def repeated(self) -> bool:
        """Whether the demonstration repeats the prompt's opening."""
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

    def prompted(self, problem: Problem, group: int, *, first: int = 0, time: int = 0) -> PromptedProblem:
        """The problem with the token ids of its prompt."""
        put = self.templater.put(problem)
        return PromptedProblem(problem, group, put.tokens, first, put, time)

    def fits(self, prompted: PromptedProblem, response: int) -> bool:
        """Whether the model has room for `response` tokens after the prompt."""
        return self.context is None or len(prompted.prompt) + response <= self.context

    def rollouts(
        self, prompted_problems: Sequence[PromptedProblem], n: int, sampling: Sampling, *, stream: str, step: int
    ) -> list[Trajectory]:
        """`n` scored responses to each problem, in the order of the problems."""
        samples = [(prompted, prompted.first + sample) for prompted in prompted_problems for sample in range(n)]
        return self.sampled(samples, sampling, stream=stream, step=step)

    def sampled(
        self, samples: Sequence[tuple[PromptedProblem, int]], sampling: Sampling, *, stream: str, step: int
    ) -> list[Trajectory]:
        """A scored response for each (problem, sample), in their order."""
        requests = [Request(stream, step, prompted.problem.id, sample, prompted.prompt) for prompted, sample in samples]
        completions = [self._ended(prompted, sampling.stop) for prompted in self.engine.sample(requests, sampling)]
        texts = [
            Response(self.templater.text(completion.tokens), prompted.opening)
            for (prompted, _), completion in zip(samples, completions, strict=True)
        ]
        scores = self.reward.score(
            [(prompted.problem, text) for (prompted, _), text in zip(samples, texts, strict=True)]
        )
        if self.zero_truncated:
            scores = [0.0 if c.truncated else score for c, score in zip(completions, scores, strict=True)]
        return [
            _rollout(prompted, request.sample, completion, text, score, sampling.temperature)
            for (prompted, _), request, completion, text, score in zip(
                samples, requests, completions, texts, scores, strict=True
            )
        ]

    def demonstrations(
        self, prompted_problems: Sequence[PromptedProblem]
    ) -> list[tuple[Trajectory | None, Lack | None]]:
        """For each problem its scored demonstration, or what it lacks.

        A demonstration is scored by the text of its tokens, as a rollout is.
        """
        responses = [self.response(prompted) for prompted in prompted_problems]
        lacks = [self.lack(prompted, response) for prompted, response in zip(prompted_problems, responses, strict=True)]
        texts = [
            Response(self.templater.text(response), prompted.opening)
            for prompted, response, lack in zip(prompted_problems, responses, lacks, strict=True)
            if lack is None
        ]
        shown = [prompted.problem for prompted, lack in zip(prompted_problems, lacks, strict=True) if lack is None]
        scored = iter(list(zip(texts, self.reward.score(list(zip(shown, texts, strict=True))), strict=True)))
        return [
            (_demonstration(prompted, response, *next(scored)), None) if lack is None else (None, lack)
            for prompted, response, lack in zip(prompted_problems, responses, lacks, strict=True)
        ]

    def response(self, prompted: PromptedProblem) -> tuple[int, ...]:
        """A demonstration's tokens; none where there is none, or nothing in it. Raises ModelError."""
        if not prompted.problem.demonstration:
            return ()
        try:
            return self.templater.response(prompted.problem.demonstration, prompted.put)
        except ModelError as error:
            raise ModelError(f"problem {prompted.problem.id}: {error}") from error

    def lack(self, prompted: PromptedProblem, response: Sequence[int]) -> Lack | None:
        """Why a demonstration of these tokens is left out; None where it isn't."""
        if not response:
            return "missing"
        if len(response) > self.demonstration_tokens:
            return "too_long"
        return None if self.fits(prompted, len(response)) else "no_room"

    def _ended(self, completion: Completion, stop: Sequence[str]) -> Completion:
        """A completion up to the token that completes a stop string, whatever the engine made of these."""
        end = self.templater.decoder.end(completion.tokens, stop)
        if end is None:
            return completion
        logp = None if completion.logp is None else completion.logp[:end]
        return Completion(completion.tokens[:end], logp, truncated=False)


def _rollout(
    prompted: PromptedProblem, sample: int, completion: Completion, text: str, score: float, temperature: float
) -> Trajectory:
    return Trajectory(
        problem=prompted.problem,
        prompt=prompted.prompt,
        response=completion.tokens,
        text=str(text),
        reward=score,
        demonstration=False,
        truncated=completion.truncated,
        sample=sample,
        rollout_logp=completion.logp,
        opening=prompted.opening,
        group=prompted.group,
        time=prompted.time,
        temperature=temperature or 1.0,
    )


def _demonstration(prompted: PromptedProblem, response: tuple[int, ...], text: str, score: float) -> Trajectory:
    return Trajectory(
        prompted.problem,
        prompted.prompt,
        response,
        str(text),
        score,
        demonstration=True,
        opening=prompted.opening,
        group=prompted.group,
        time=prompted.time,
    )
