"""What a person should know of a run that is valid and yet wastes its time: before it, or once while it goes on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from upge.recipe import trials
from upge.recipe.schema import Optimizer, Recipe
from upge.schedule import Schedule, at


def before(recipe: Recipe, done: int = 0) -> list[str]:
    """A sentence for each caution, of the steps from `done` on."""
    return [*_alone(recipe), *_still(recipe, done), *_at_rest(recipe, done)]


def _alone(recipe: Recipe) -> Iterator[str]:
    """A prompt's only rollout is above and below nothing."""
    if recipe.rollout.n == 1:
        for name in trials.silent(recipe.estimator, prompts=min(4, recipe.train.prompts), rollouts=1):
            yield (
                f"rollout.n: with one rollout a prompt the term '{name}' learns nothing: its advantage "
                "compares a rollout with the others of its prompt; set rollout.n to 2 or more"
            )


def _still(recipe: Recipe, done: int) -> Iterator[str]:
    """A learning rate that is 0 and no schedule."""
    steps = recipe.train.steps - done
    for name, block in _rates(recipe).items():
        if steps > 0 and block is not None and block.lr == 0:
            yield f"{name}.lr is 0, so that no step trains anything there; set it above 0"


def _rates(recipe: Recipe) -> dict[str, Optimizer | None]:
    return {"optimizer": recipe.optimizer, "critic": recipe.critic}


def _at_rest(recipe: Recipe, done: int) -> Iterator[str]:
    """Steps that change nothing, because the learning rate has come to 0."""
    for block, end in ended_rates(recipe).items():
        first, steps = max(end, done), recipe.train.steps
        if first < steps:
            yield (
                f"{block}.lr is 0 from step {end} on, where its schedule ends: {steps - first} of the next "
                f"{steps - done} steps train nothing there; to extend the schedule: {block}.lr.steps={steps}"
            )


def ended_rates(recipe: Recipe) -> dict[str, int]:
    """The blocks whose learning rate comes to 0, and at which step."""
    return {
        name: block.lr.steps
        for name, block in _rates(recipe).items()
        if block is not None and isinstance(block.lr, Schedule) and at(block.lr, block.lr.steps) == 0
    }


def during(recipe: Recipe, metrics: Mapping[str, Any], said: set[str]) -> list[str]:
    """What a step's metrics warn of, each once; `said` keeps what was."""
    found = dict(_of_metrics(recipe, metrics))
    news = [sentence for name, sentence in found.items() if name not in said]
    said |= set(found)
    return news


def _of_metrics(recipe: Recipe, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    step = metrics["step"]
    if "weights/changed" in metrics:
        other = "a larger optimizer.lr"
        if recipe.model.dtype == "bfloat16":
            other = f"model.dtype=float32 (train.precision=bfloat16 keeps the passes as fast), or {other}"
        yield (
            "weights/changed",
            f"step {step}: the update changed {metrics['weights/changed']:.2%} of the weights that have a gradient: "
            f"a learning rate of {metrics['lr']:.3g} is lost in the rounding of {recipe.model.dtype}; to try: {other}",
        )
    for name in recipe.estimator.terms:
        if count := metrics.get(f"{name}/clamped"):
            yield (
                f"{name}/clamped",
                f"step {step}: {count:.0f} tokens of '{name}' have a log-ratio beyond 20 nats, which is clamped to 20, "
                "so their weight is e^20 = 4.9e8 times their advantage; to try: a mask that bounds large ratios; also "
                "check whether the denominator is of the same model",
            )
