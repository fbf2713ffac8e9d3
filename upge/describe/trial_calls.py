"""One call of every part of an estimator, on synthetic batches like those of its recipe's runs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from upge.estimator.batch import Batch
from upge.estimator.part_calls import PartError
from upge.part import Part
from upge.recipe.compose import Composed, place_of
from upge.recipe.faults import Fault, RecipeError
from upge.recipe.schema import Recipe
from upge.testing.batches import Case, Prompt

MOST = 8
"""Rollouts of a prompt at most: a part that fails with more fails with these."""


def rehearse(recipe: Recipe, composed: Composed) -> None:
    """Call every part in credit, count and weigh, at the first steps and at the last, with the state carried.

    Raises RecipeError for the first part that can't do it, with where the recipe names the part, and where the part's
    own file has it.
    """
    estimator = recipe.estimator
    state = estimator.initial()
    try:
        for step in sorted({0, 1, max(recipe.train.steps - 1, 0)}):
            for batch in _batches(recipe, step):
                credit = estimator.credit(batch, step, state=state)
                estimator.weigh(batch, estimator.count(batch, credit))
                state = credit.state
    except PartError as error:
        part = estimator.parts()[error.place.removeprefix("estimator.")]
        message = f"can't run: {error}"
        raise RecipeError([Fault(message, place_of(composed.root, error.place), _own_place(part))]) from error


def _batches(recipe: Recipe, step: int) -> Iterator[Batch]:
    """Batches with what the recipe's terms want at a step: strictly on-policy first, then with another π_old."""
    rollouts, shown = recipe.estimator.wants_rollouts(step), recipe.estimator.wants_demonstrations(step)
    n = min(recipe.rollout.n, MOST) if rollouts else 0
    if not n and not shown:
        return
    one = int(shown)
    prompts = (Prompt(n, one, "mixed"), Prompt(n, one, "wrong"), Prompt(n, one, "right"))
    for case in (Case(prompts, "none", 6, seed=11), Case(prompts, "near", 6, seed=11)):
        yield _in_float32(case.batch)


def _in_float32(batch: Batch) -> Batch:
    assert batch.logp is not None
    return replace(batch, logp=batch.logp.float(), reward=batch.reward.to(torch.float32))


def _own_place(part: Part) -> str | None:
    """Where the code of a part stands."""
    try:
        file, line = inspect.getsourcefile(type(part)), inspect.getsourcelines(type(part))[1]
    except (OSError, TypeError):
        return None
    return None if file is None else f"the part is {type(part).__name__} in {_near(Path(file))}:{line}"


def _near(file: Path) -> Path:
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
