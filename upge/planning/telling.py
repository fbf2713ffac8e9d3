"""What a person should know before the run: packages that are missing, numbers that don't divide, templates."""

from __future__ import annotations

from collections.abc import Iterator

from transformers import PreTrainedTokenizerBase

from upge.recipe import Recipe
from upge.run import cautions
from upge.run.requiring import missing


def notes(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, processes: int, length: int) -> Iterator[str]:
    """One sentence each. Args: length: tokens of prompt and response together, at most."""
    yield from missing(recipe)
    yield from cautions.before(recipe)
    if (own := recipe.engine_of_its_own()) is not None:
        yield f"eval.engine: {own.dump()['use']} is open beside the rollouts' engine, and takes memory of its own"
    yield from _dividing(recipe, processes)
    yield from _templating(recipe, tokenizer)
    limit = getattr(recipe.rollout.engine, "max_model_len", None)
    if isinstance(limit, int) and limit < length:
        yield f"rollout.engine.max_model_len: {limit} tokens are fewer than prompt and response may have, {length}"
    if recipe.eval.splits and recipe.train.steps and not recipe.eval.every:
        yield f"eval.every: {', '.join(recipe.eval.splits)} measured before the first step and after the last alone"


def _dividing(recipe: Recipe, processes: int) -> Iterator[str]:
    train = recipe.train
    if train.prompts % train.minibatches:
        yield f"train.minibatches: {train.prompts} prompts don't divide by {train.minibatches}; steps differ in size"
    if processes > 1 and train.prompts % (train.minibatches * processes):
        yield (
            f"train.prompts: {train.prompts} over {train.minibatches} minibatches don't divide by {processes} ranks; "
            "some wait for the others"
        )


def _templating(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[str]:
    if recipe.data.template is not None:
        return
    if tokenizer is None:
        yield "data.template: the tokenizer is not on this machine, so whether it has a chat template is not known"
    elif not tokenizer.chat_template:
        yield "data.template: none, and the tokenizer has no chat template; prompts are put as they are"
