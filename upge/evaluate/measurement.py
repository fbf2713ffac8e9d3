"""Measuring a policy: avg@n and pass@k on the data's splits, in all and by band."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from statistics import fmean

from upge.distributed.ranks import Ranks
from upge.evaluate.scores import columns, places, records
from upge.recipe.schema import Recipe
from upge.rollouts.problems import problems_of
from upge.rollouts.sampler import PromptedProblem, Sampler
from upge.runs.folder import stream_of
from upge.types import DataSession, Problem, Sampling, Trajectory

CHUNK = 4096
"""The number of responses sampled at once. Random numbers are keyed, so no completion depends on it."""


def evaluate(
    recipe: Recipe, data: DataSession, sampler: Sampler, step: int, ranks: Ranks
) -> tuple[dict[str, float], dict[str, list[Trajectory]]]:
    """The metrics `<split>/avg@n`, `<split>/<band>/avg@n`, `…/pass@k`, `…/truncated`, and the responses by split."""
    metrics: dict[str, float] = {}
    responses = {}
    for split in recipe.eval.splits:
        prompted_problems = prompted_share(
            sampler, problems_of(recipe, data, split), recipe.eval.n, rank=ranks.rank, world=ranks.world
        )
        mine = chain.from_iterable(sample(recipe, sampler, prompted_problems, split, step=step))
        responses[split] = ranks.all_gather(list(mine))
        metrics |= measure(split, responses[split], recipe.eval.pass_at)
    return metrics, responses


def prompted_share(
    sampler: Sampler, problems: Sequence[Problem], n: int, *, rank: int = 0, world: int = 1
) -> list[PromptedProblem]:
    """This rank's share of the problems with their prompts; a repeated problem gets other sample numbers."""
    seen: Counter[str] = Counter()
    prompted_problems = []
    for place, problem in enumerate(problems):
        if place % world == rank:
            prompted_problems.append(sampler.prompted(problem, place, first=seen[problem.id] * n))
        seen[problem.id] += 1
    return prompted_problems


def samples(recipe: Recipe, prompted_problems: Sequence[PromptedProblem]) -> Iterator[tuple[PromptedProblem, int]]:
    """Every (problem, sample) of a measurement, problem by problem."""
    return ((prompted, prompted.first + sample) for prompted in prompted_problems for sample in range(recipe.eval.n))


def sample(
    recipe: Recipe,
    sampler: Sampler,
    prompted_problems: Sequence[PromptedProblem],
    split: str,
    *,
    step: int,
    skip: int = 0,
    chunk: int = CHUNK,
    rank: int = 0,
    world: int = 1,
) -> Iterator[list[Trajectory]]:
    """The scored responses to a split's problems, in their order, at most `chunk` at a time, but for the first `skip`.

    Neither prompts repeated n times nor responses are ever held for more than one chunk. Of each chunk these are the
    share of `rank` among `world`: put together in the order of ranks, the shares are the chunk.
    """
    settings = recipe.eval
    rollout = recipe.rollout
    sampling = Sampling(settings.temperature, settings.top_p, settings.top_k, rollout.max_tokens, rollout.stop)
    rest = islice(samples(recipe, prompted_problems), skip, None)
    while piece := list(islice(rest, chunk)):
        mine = piece[rank * len(piece) // world : (rank + 1) * len(piece) // world]
        yield sampler.sampled(mine, sampling, stream=stream_of(split), step=step)


def measure(split: str, responses: Sequence[Trajectory], pass_at: Sequence[int]) -> dict[str, float]:
    """The mean scores of a split's responses, in all and for each band; see `upge.evaluate.scores.columns`."""
    return {
        f"{place}/{score}": fmean(values)
        for place, members in places(records(split, responses)).items()
        for score, values in columns(members, pass_at).items()
    }
