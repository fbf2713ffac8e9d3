"""From problems to trajectories: prompts are put to the policy, responses sampled and scored, demonstrations added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from upge.flow import Completion, EngineSession, Problem, Request, RewardSession, Sampling, Trajectory
from upge.policy import Templater


@dataclass(frozen=True)
class Asked:
    """A problem in its place of the rollout batch: `group` tells it from another occurrence of the same problem."""

    problem: Problem
    group: int
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Collector:
    """Makes trajectories of problems.

    Attributes:
        templater: text ↔ tokens. engine, reward: open sessions.
        demonstration_tokens: a longer demonstration is left out and counted.
        zero_truncated: rollouts cut at the budget score 0.
    """

    templater: Templater
    engine: EngineSession
    reward: RewardSession
    demonstration_tokens: int
    zero_truncated: bool = False

    def ask(self, problems: Sequence[Problem], groups: Sequence[int]) -> list[Asked]:
        """The problems as the policy will read them."""
        return [
            Asked(problem, group, self.templater.prompt(problem))
            for problem, group in zip(problems, groups, strict=True)
        ]

    def rollouts(
        self, asked: Sequence[Asked], n: int, sampling: Sampling, *, stream: str, step: int
    ) -> list[tuple[int, Trajectory]]:
        """(group, trajectory) of `n` scored responses to each problem, in the order of the problems."""
        wanted = [(each, sample) for each in asked for sample in range(n)]
        offset = _occurrences(asked, n)
        requests = [
            Request(stream, step, each.problem.id, sample + offset[each.group], each.prompt) for each, sample in wanted
        ]
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

    def demonstrations(self, asked: Sequence[Asked]) -> tuple[list[tuple[int, Trajectory]], Counter[str]]:
        """(group, trajectory) of each problem's demonstration, and how many problems have none, or one too long."""
        counts = Counter(missing=0, too_long=0)
        found = []
        for each in asked:
            if each.problem.demonstration is None:
                counts["missing"] += 1
                continue
            response = self.templater.response(each.problem.demonstration)
            if len(response) > self.demonstration_tokens:
                counts["too_long"] += 1
                continue
            found.append((each, response))
        scores = self.reward.score([(each.problem, each.problem.demonstration or "") for each, _ in found])
        return [
            (each.group, _demonstration(each, response, score))
            for (each, response), score in zip(found, scores, strict=True)
        ], counts


def _occurrences(asked: Sequence[Asked], n: int) -> dict[int, int]:
    """The first sample number of each group, so that a problem asked twice in a batch draws different noise."""
    seen: Counter[str] = Counter()
    first = {}
    for each in asked:
        first[each.group] = seen[each.problem.id] * n
        seen[each.problem.id] += 1
    return first


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
