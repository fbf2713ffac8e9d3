"""From problems to trajectories: prompts are put to the policy, responses sampled and scored, demonstrations added."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from upge.flow import Completion, EngineSession, Problem, Request, RewardSession, Sampling, Trajectory
from upge.policy import Templater


@dataclass(frozen=True)
class Asked:
    """A problem in its place of the rollout batch, `group`; its samples are numbered from `first`."""

    problem: Problem
    group: int
    prompt: tuple[int, ...]
    first: int = 0


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
        return Asked(problem, group, self.templater.prompt(problem), first)

    def fits(self, asked: Asked, response: int) -> bool:
        """Whether the model has room for `response` tokens after the prompt."""
        return self.context is None or len(asked.prompt) + response <= self.context

    def rollouts(
        self, asked: Sequence[Asked], n: int, sampling: Sampling, *, stream: str, step: int
    ) -> list[tuple[int, Trajectory]]:
        """(group, trajectory) of `n` scored responses to each problem, in the order of the problems."""
        wanted = [(each, each.first + sample) for each in asked for sample in range(n)]
        return self.sampled(wanted, sampling, stream=stream, step=step)

    def sampled(
        self, wanted: Sequence[tuple[Asked, int]], sampling: Sampling, *, stream: str, step: int
    ) -> list[tuple[int, Trajectory]]:
        """(group, trajectory) of a scored response for each (problem, sample), in their order."""
        requests = [Request(stream, step, each.problem.id, sample, each.prompt) for each, sample in wanted]
        completions = self.engine.sample(requests, sampling)
        texts = [self.templater.text(completion.tokens) for completion in completions]
        scores = self.reward.score([(each.problem, text) for (each, _), text in zip(wanted, texts, strict=True)])
        if self.zero_truncated:
            scores = [0.0 if c.truncated else score for c, score in zip(completions, scores, strict=True)]
        return [
            (each.group, _rollout(each, request.sample, completion, text, score))
            for (each, _), request, completion, text, score in zip(
                wanted, requests, completions, texts, scores, strict=True
            )
        ]

    def demonstrations(self, asked: Sequence[Asked]) -> list[tuple[Trajectory | None, str | None]]:
        """For each problem its scored demonstration, or what it lacks: "missing", or "too_long" for the budget."""
        responses = [self._response(each.problem) for each in asked]
        fits = [
            0 < len(response) <= self.demonstration_tokens and self.fits(each, len(response))
            for each, response in zip(asked, responses, strict=True)
        ]
        shown = [(each.problem, each.problem.demonstration or "") for each, fit in zip(asked, fits, strict=True) if fit]
        scores = iter(self.reward.score(shown))
        return [
            (_demonstration(each, response, next(scores)), None)
            if fit
            else (None, "too_long" if response else "missing")
            for each, response, fit in zip(asked, responses, fits, strict=True)
        ]

    def _response(self, problem: Problem) -> tuple[int, ...]:
        """A demonstration's tokens; none where there is none."""
        return () if problem.demonstration is None else self.templater.response(problem.demonstration)


def _rollout(asked: Asked, sample: int, completion: Completion, text: str, score: float) -> Trajectory:
    return Trajectory(
        problem=asked.problem,
        prompt=asked.prompt,
        response=completion.tokens,
        text=text,
        reward=score,
        demonstration=False,
        truncated=completion.truncated,
        sample=sample,
        rollout_logp=completion.logp,
    )


def _demonstration(asked: Asked, response: tuple[int, ...], score: float) -> Trajectory:
    text = asked.problem.demonstration or ""
    return Trajectory(asked.problem, asked.prompt, response, text, score, demonstration=True)
