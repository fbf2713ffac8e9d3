"""Measuring a policy: avg@n and pass@k on the data's splits, in all and by band."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from math import comb
from statistics import fmean

from upge.flow import DataSession, Sampling, Trajectory
from upge.recipe import Recipe
from upge.run.collect import Collector

Gather = Callable[[list[Trajectory]], list[Trajectory]]
"""All ranks' trajectories, in the order of ranks."""


def evaluate(
    recipe: Recipe, data: DataSession, collector: Collector, step: int, *, rank: int, world: int, gather: Gather
) -> tuple[dict[str, float], dict[str, list[Trajectory]]]:
    """The metrics `<split>/avg@n`, `<split>/<band>/avg@n`, `…/pass@k`, `…/truncated`, and the responses by split."""
    settings = recipe.eval
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, recipe.rollout.max_tokens)
    metrics: dict[str, float] = {}
    responses = {}
    for split in settings.splits:
        problems = list(data.split(split))[: settings.limit]
        seen: Counter[str] = Counter()
        asked = []
        for place, problem in enumerate(problems):
            if place % world == rank:
                asked.append(collector.ask(problem, place, first=seen[problem.id] * settings.n))
            seen[problem.id] += 1
        sampled = collector.rollouts(asked, settings.n, sampling, stream=f"eval/{split}", step=step)
        responses[split] = gather([trajectory for _, trajectory in sampled])
        metrics |= measure(split, responses[split], settings.pass_at)
    return metrics, responses


def measure(split: str, responses: Sequence[Trajectory], pass_at: Sequence[int]) -> dict[str, float]:
    """avg@n, pass@k and the truncated share of a split's responses, in all and for each band."""
    bands: dict[str, list[Trajectory]] = defaultdict(list)
    for each in responses:
        if each.problem.band is not None:
            bands[f"{split}/{each.problem.band}"].append(each)
    metrics: dict[str, float] = {}
    for name, members in {split: list(responses), **dict(sorted(bands.items()))}.items():
        metrics |= {f"{name}/{key}": value for key, value in _scores(members, pass_at).items()}
    return metrics


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that k of n samples hold a correct one: 1 − C(n − c, k)/C(n, k). Source: arXiv 2107.03374, eq. 1."""
    return 1.0 - comb(n - correct, k) / comb(n, k)


def _scores(responses: Sequence[Trajectory], pass_at: Sequence[int]) -> dict[str, float]:
    if not responses:
        return {}
    by_problem = [
        [each.reward for each in samples] for _, samples in groupby(sorted(responses, key=_identity), key=_identity)
    ]
    n = len(by_problem[0])
    scores = {f"avg@{n}": fmean(fmean(rewards) for rewards in by_problem)}
    for k in pass_at:
        scores[f"pass@{k}"] = fmean(pass_at_k(n, sum(reward > 0 for reward in rewards), k) for rewards in by_problem)
    return scores | {"truncated": fmean(each.truncated for each in responses)}


def _identity(trajectory: Trajectory) -> str:
    return trajectory.problem.id
