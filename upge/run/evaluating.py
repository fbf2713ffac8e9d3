"""Measuring a policy: avg@n and pass@k on the data's splits, in all and by band."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from heapq import nsmallest
from itertools import chain, islice, pairwise
from math import gcd
from statistics import fmean

from upge.errors import InputError
from upge.flow import DataSession, Problem, Sampling, Trajectory
from upge.recipe import Recipe
from upge.records.folder import stream_of
from upge.records.scores import columns, places, records
from upge.run.collect import Asked, Collector

CHUNK = 4096
"""Responses asked for at once. Noise is keyed, so no completion depends on it."""

GOLDEN = (5**0.5 - 1) / 2
"""φ: its multiples, modulo 1, are spread more evenly than those of any other number."""

Gather = Callable[[list[Trajectory]], list[Trajectory]]
"""All ranks' trajectories, in the order of ranks."""


def evaluate(
    recipe: Recipe, data: DataSession, collector: Collector, step: int, *, rank: int, world: int, gather: Gather
) -> tuple[dict[str, float], dict[str, list[Trajectory]]]:
    """The metrics `<split>/avg@n`, `<split>/<band>/avg@n`, `…/pass@k`, `…/truncated`, and the responses by split."""
    metrics: dict[str, float] = {}
    responses = {}
    for split in recipe.eval.splits:
        asked = ask(collector, problems_of(recipe, data, split), recipe.eval.n, rank=rank, world=world)
        mine = chain.from_iterable(sample(recipe, collector, asked, split, step=step))
        responses[split] = gather(list(mine))
        metrics |= measure(split, responses[split], recipe.eval.pass_at)
    return metrics, responses


def problems_of(
    recipe: Recipe, data: DataSession, split: str, answered: Collection[str] | None = None
) -> list[Problem]:
    """The problems of a split, `eval.limit` of them at most, spread over it; see `spread`.

    Where responses are given, `answered` are the ids of their problems: if these are as many as the limit, but others,
    they are taken. Raises InputError for a split that isn't there.
    """
    there = data.splits()
    if split not in there:
        raise InputError(f"eval.splits: the data has no split '{split}'; it has {', '.join(there) or 'none'}")
    problems, limit = list(data.split(split)), recipe.eval.limit
    if limit is None or limit >= len(problems):
        return problems
    spaced = [problems[place] for place in spread(len(problems), limit)]
    if answered is None or all(problem.id in answered for problem in spaced):
        return spaced
    others = [problem for problem in problems if problem.id in answered]
    return others if len(others) == limit else spaced


def spread(size: int, count: int) -> list[int]:
    """`count` places among `size` in order; count ≤ size. They are those of every g-th, going round:

        place i = i·g mod size,   g near φ·size, without a divisor in common with size

    Multiples of φ are spread evenly, so of sorted data each kind has about its share: of the three nearest g the one
    that leaves the smallest gaps is taken. Multiples of g fall on all places of a period alike, so each kind has its
    share of data whose kinds take turns too.
    """
    steps = (step for step in range(1, size + 1) if gcd(step, size) == 1)
    near = nsmallest(3, steps, key=lambda step: abs(step - GOLDEN * size))
    spreads = [sorted(place * step % size for place in range(count)) for step in near]
    return min(spreads, key=lambda places: max(b - a for a, b in pairwise([*places, size])))


def ask(collector: Collector, problems: Sequence[Problem], n: int, *, rank: int = 0, world: int = 1) -> list[Asked]:
    """This rank's share of the problems; one that stands there again draws other noise."""
    seen: Counter[str] = Counter()
    asked = []
    for place, problem in enumerate(problems):
        if place % world == rank:
            asked.append(collector.ask(problem, place, first=seen[problem.id] * n))
        seen[problem.id] += 1
    return asked


def samples(recipe: Recipe, asked: Sequence[Asked]) -> Iterator[tuple[Asked, int]]:
    """Every (problem, sample) that a measurement asks for, problem by problem."""
    return ((each, each.first + sample) for each in asked for sample in range(recipe.eval.n))


def sample(
    recipe: Recipe,
    collector: Collector,
    asked: Sequence[Asked],
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
    wanted = islice(samples(recipe, asked), skip, None)
    while piece := list(islice(wanted, chunk)):
        mine = piece[rank * len(piece) // world : (rank + 1) * len(piece) // world]
        yield [each for _, each in collector.sampled(mine, sampling, stream=stream_of(split), step=step)]


def measure(split: str, responses: Sequence[Trajectory], pass_at: Sequence[int]) -> dict[str, float]:
    """The mean scores of a split's responses, in all and for each band; see `upge.records.scores.columns`."""
    return {
        f"{place}/{score}": fmean(values)
        for place, members in places(records(split, responses)).items()
        for score, values in columns(members, pass_at).items()
    }
