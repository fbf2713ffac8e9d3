"""Whether prompts and responses fit the model's context, found out before anything is sampled.

What is trained on may be left out, and is counted, as long as something is left; what is measured may not: the score
would be of something else.
"""

from __future__ import annotations

from collections.abc import Sequence

from upge.flow import DataSession, Problem
from upge.policy import ModelError
from upge.recipe import Recipe
from upge.run.checking import coming, refuse_unscorable
from upge.run.collect import Asked, Collector, Lack
from upge.run.problems import problems_of


def check(recipe: Recipe, data: DataSession, collector: Collector) -> None:
    """Raise ModelError where a problem to evaluate leaves no room, or nothing would be left to train on at first.

    That is: every prompt of the first rollout batch leaves no room for a response; or, where only demonstrations are
    trained on, none of the problems to come has one that can be taken.
    """
    for split in recipe.eval.splits:
        measured(recipe, split, problems_of(recipe, data, split), collector)
    if recipe.train.steps and recipe.estimator.wants_rollouts(0):
        first = _first(recipe, data)
        long = _too_long(recipe, first, collector)
        if first and len(long) == len(first):
            example = _wording(recipe, long[0], collector)
            raise ModelError(f"data: no problem of the first rollout batch leaves room for a response: {example}")
    elif recipe.train.steps and recipe.estimator.wants_demonstrations(0):
        _check_demonstrations(recipe, data, collector)


def measured(recipe: Recipe, split: str, problems: Sequence[Problem], collector: Collector) -> None:
    """Raise ModelError where a problem to evaluate leaves no room, InputError where its responses can't be scored."""
    refuse_unscorable(recipe, problems)
    if long := _too_long(recipe, problems, collector):
        raise ModelError(f"eval.splits: {split}: {_wording(recipe, long[0], collector)}")


def _check_demonstrations(recipe: Recipe, data: DataSession, collector: Collector) -> None:
    """Raise ModelError unless one of the problems that a run looks at before it starts has a demonstration to take."""
    train = recipe.train
    count, example = 0, ""
    for problem in coming(data, train.steps, train.prompts, max(train.prompts, train.check_problems)):
        asked = collector.ask(problem, 0)
        response = collector.response(asked)
        lack = collector.lack(asked, response)
        if lack is None:
            return
        count += 1
        if not example and lack != "missing":
            example = _lacking(asked, response, lack, collector)
    if count:
        said = example or "they have none; data.demonstration names their column"
        raise ModelError(f"data: none of the first {count} problems has a demonstration that can be trained on: {said}")


def _lacking(asked: Asked, response: Sequence[int], lack: Lack, collector: Collector) -> str:
    head = f"problem {asked.problem.id}: a demonstration of {len(response)} tokens"
    if lack == "too_long":
        budget = f"the budget of {collector.demonstration_tokens}"
        return f"{head} is over {budget} (train.demonstration_tokens, by default rollout.max_tokens)"
    return f"{head} after a prompt of {len(asked.prompt)} exceeds the model's context of {collector.context}"


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
