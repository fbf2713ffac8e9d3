"""Whether prompts and responses fit the model's context, found out before anything is sampled.

What is trained on may be left out, and is counted; what is measured may not: the score would be of something else.
"""

from __future__ import annotations

from collections.abc import Sequence

from upge.flow import DataSession, Problem
from upge.policy import ModelError
from upge.recipe import Recipe
from upge.run.collect import Collector
from upge.run.evaluating import problems_of


def check(recipe: Recipe, data: DataSession, collector: Collector) -> None:
    """Raise ModelError where a problem to evaluate, or every problem of the first rollout batch, leaves no room."""
    for split in recipe.eval.splits:
        measured(recipe, split, problems_of(recipe, data, split), collector)
    if recipe.train.steps and recipe.estimator.wants_rollouts(0):
        first = _first(recipe, data)
        long = _too_long(recipe, first, collector)
        if first and len(long) == len(first):
            example = _wording(recipe, long[0], collector)
            raise ModelError(f"data: no problem of the first rollout batch leaves room for a response: {example}")


def measured(recipe: Recipe, split: str, problems: Sequence[Problem], collector: Collector) -> None:
    """Raise ModelError where a problem to evaluate leaves no room for a response."""
    if long := _too_long(recipe, problems, collector):
        raise ModelError(f"eval.splits: {split}: {_wording(recipe, long[0], collector)}")


def _first(recipe: Recipe, data: DataSession) -> list[Problem]:
    """The problems of the first rollout batch, taken as the run will take them."""
    if recipe.rollout.refill is None:
        return data.take(0, recipe.train.prompts)
    return [data.take(position, 1)[0] for position in range(recipe.train.prompts)]


def _too_long(recipe: Recipe, problems: Sequence[Problem], collector: Collector) -> list[Problem]:
    budget = recipe.rollout.max_tokens
    return [problem for problem in problems if not collector.fits(collector.ask(problem, 0), budget)]


def _wording(recipe: Recipe, problem: Problem, collector: Collector) -> str:
    length = len(collector.ask(problem, 0).prompt)
    return (
        f"problem {problem.id}: a prompt of {length} tokens and rollout.max_tokens {recipe.rollout.max_tokens} "
        f"exceed the model's context of {collector.context}"
    )
