"""A recipe's plan: its estimated cost, and the faults that can be found without loading its model."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from upge.errors import InputError
from upge.plan import memory
from upge.plan.fake_model import DTYPES, SourcedConfig, config_of, tokenizer_of
from upge.plan.memory import Count, Share, Work, work_of
from upge.recipe.compose import Composed, place_of
from upge.recipe.faults import Fault, RecipeError
from upge.recipe.schema import Recipe
from upge.rollouts.preflight import missing_packages
from upge.train import cautions


def notes(recipe: Recipe, tokenizer: PreTrainedTokenizerBase | None, processes: int, length: int) -> Iterator[str]:
    """One sentence each. Args: length: tokens of prompt and response together, at most."""
    yield from missing_packages(recipe)
    yield from cautions.before(recipe)
    if (engine := recipe.engine_of_its_own()) is not None:
        yield f"eval.engine: {engine.dump()['use']} is open beside the rollouts' engine, and takes memory of its own"
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


PROMPT = 1024
"""Tokens that a prompt is taken to have at most, where the context leaves so many."""


@dataclass(frozen=True)
class Plan:
    """The estimated cost of a run.

    Attributes:
        origin: where the model's config came from. processes: ranks.
        context: positions of the model, or None. shares: bytes on each rank. peaks: bytes of a pass without and with
            gradient checkpointing, the second only where the model has it.
        logits: bytes of a micro-batch's logits. cache: bytes of keys and values of a token, in the engine's type.
        engine: the share of its device that the engine takes, if it is set.
        notes: what a person should know before.
    """

    recipe: Recipe
    origin: str
    processes: int
    context: int | None
    count: Count
    work: Work
    shares: tuple[Share, ...]
    peaks: tuple[float, ...]
    logits: float
    cache: float | None
    engine: float | None
    notes: tuple[str, ...]


def plan(
    recipe: Recipe,
    composed: Composed | None = None,
    *,
    processes: int | None = None,
    config: Path | None = None,
    prompt_tokens: int | None = None,
) -> Plan:
    """The plan of a recipe. Nothing is fetched, and no weight is read.

    Args:
        composed: the recipe's tree, for the places of faults. processes: ranks; by default `WORLD_SIZE`, or 1.
        config: a config.json to take in place of the model's own.
        prompt_tokens: of the longest prompt; by default 1024, or what the context leaves beside `rollout.max_tokens`.

    Raises:
        RecipeError: what would fail once the run opens, with its place.
        InputError: a `WORLD_SIZE` that is no number.
    """
    ranks = processes or _world_size()
    try:
        source = config_of(recipe.model, config)
        context = _context(source)
        prompt = _prompt(recipe, context, prompt_tokens, composed)
        work = work_of(recipe, prompt, ranks)
        counted, shares, peaks = memory.shares(recipe, source.config, work, ranks)
    except InputError as error:
        at = "model.config" if recipe.model.path is None else "model.path"
        raise _fault(str(error), at, composed) from error
    length = prompt + max(work.response, work.demonstration)
    share = getattr(recipe.rollout.engine, "gpu_memory_utilization", None)
    return Plan(
        recipe=recipe,
        origin=source.origin,
        processes=ranks,
        context=context,
        count=counted,
        work=work,
        shares=tuple(shares),
        peaks=tuple(peaks),
        logits=memory.logits(work, source.config),
        cache=memory.cache(source.config, _itemsize(recipe)),
        engine=share if isinstance(share, float) else None,
        notes=(
            *notes(recipe, tokenizer_of(recipe.model), ranks, length),
            *(["activations: this architecture's pass can't be imagined"] if any(map(math.isnan, peaks)) else []),
        ),
    )


def _itemsize(recipe: Recipe) -> int:
    """Bytes of a number in the engine's cache."""
    dtype = getattr(recipe.rollout.engine, "dtype", "policy")
    return DTYPES[recipe.model.dtype if dtype not in DTYPES else dtype].itemsize


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE", "1")
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"WORLD_SIZE: {text!r} is no number of processes; give it with --processes")
    return int(text)


def _context(source: SourcedConfig) -> int | None:
    length = getattr(source.config.get_text_config(), "max_position_embeddings", None)
    return int(length) if length else None


def _prompt(recipe: Recipe, context: int | None, requested: int | None, composed: Composed | None) -> int:
    """Tokens of the longest prompt. Raises RecipeError where it and its response exceed the model's context."""
    response = recipe.rollout.max_tokens
    left = PROMPT if context is None else context - response
    length = requested or max(1, min(PROMPT, left))
    if length > left and context is not None:
        message = f"a prompt of {length} tokens and a response of {response} exceed the model's context of {context}"
        raise _fault(message, "rollout.max_tokens", composed)
    return length


def _fault(message: str, at: str, composed: Composed | None) -> RecipeError:
    return RecipeError([Fault(message, None if composed is None else place_of(composed.root, at))])
