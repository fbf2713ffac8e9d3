"""The problems of a split that an evaluation measures."""

from __future__ import annotations

from collections.abc import Collection
from heapq import nsmallest
from itertools import pairwise
from math import gcd

from upge.errors import InputError
from upge.recipe.schema import Recipe
from upge.types import DataSession, Problem

GOLDEN = (5**0.5 - 1) / 2
"""φ: its multiples, modulo 1, are spread more evenly than those of any other number."""


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
