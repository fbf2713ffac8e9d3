"""Bytes of one rank's device, share by share. docs/paper.md has every formula."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import nn

from upge.errors import ModelError
from upge.model.loading import absolute
from upge.model.recompute import check
from upge.model_paths import averages, named_models
from upge.part import Part
from upge.plan.fake_model import DTYPES, Pass, config_at, critic_peak, imagined, policy_peak
from upge.recipe.schema import Recipe

_EXAMINED = 10_000
"""Rollout batches whose wanted terms are computed; the steps after them count like the last one."""


@dataclass(frozen=True)
class Work:
    """The size of a rollout batch in which every prompt and response has its maximal length.

    Attributes:
        prompt, response, demonstration: tokens of one, at most; 0 for what the recipe never uses.
        sampled, shown: rollout batches with rollouts, and with demonstrations, in the whole run.
        rollouts, demonstrations: rows of a rollout batch that has them, over all ranks.
        tokens: prompts, responses and demonstrations of the largest rollout batch.
        updates: optimizer steps of a rollout batch. micro_batches: forward and backward passes of each, on each rank.
        rows: of a micro-batch.
    """

    prompt: int
    response: int
    demonstration: int
    sampled: int
    shown: int
    rollouts: int
    demonstrations: int
    tokens: int
    updates: int
    micro_batches: int
    rows: int


def work_of(recipe: Recipe, prompt: int, processes: int) -> Work:
    """The work of a recipe. Args: prompt: tokens of the longest prompt. processes: ranks."""
    train, n = recipe.train, recipe.rollout.n
    estimator, steps = recipe.estimator, range(min(train.steps, _EXAMINED))
    wants = [(estimator.wants_rollouts(step), estimator.wants_demonstrations(step)) for step in steps]
    last = wants[-1:] * (train.steps - len(wants))
    sampled, shown = (sum(step[kind] for step in (*wants, *last)) for kind in (0, 1))
    response = recipe.rollout.max_tokens if sampled else 0
    shown_tokens = (train.demonstration_tokens or recipe.rollout.max_tokens) if shown else 0
    rollouts = train.prompts * n if sampled else 0
    demonstrations = train.prompts if shown else 0
    both = any(all(step) for step in wants)
    tokens = rollouts * (prompt + response), demonstrations * (prompt + shown_tokens)
    longest = prompt + max(response, shown_tokens, 1)
    per_prompt = n * (sampled > 0) + (shown > 0) if both else max(n * (sampled > 0), int(shown > 0))
    mine = math.ceil(train.prompts / train.minibatches / processes) * per_prompt
    rows = max(1, min(train.micro_batch_tokens // longest, mine))
    return Work(
        prompt=prompt,
        response=response,
        demonstration=shown_tokens,
        sampled=sampled,
        shown=shown,
        rollouts=rollouts,
        demonstrations=demonstrations,
        tokens=sum(tokens) if both else max(tokens),
        updates=train.minibatches * train.epochs,
        micro_batches=math.ceil(mine / rows),
        rows=rows,
    )


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    pass
    from upge.recipe.schema import Recipe

_PACKED = {"nf4": 0.5, "fp4": 0.5, "int8": 1.0}
"""Bytes of a quantized weight, its scales left out."""


@dataclass(frozen=True)
class Count:
    """A model's parameters: all, those that are trained, those outside its layers, and its largest layer's."""

    parameters: int
    trained: int
    outside: int
    layer: int


@dataclass(frozen=True)
class Share:
    """One use of memory, in bytes on each rank: with whole models, and with models sharded over ranks."""

    name: str
    whole: float
    sharded: float


def count(model: PreTrainedModel) -> Count:
    """The parameters of a model; its layers are those that transformers names as not to be split."""
    kinds = set(getattr(model, "_no_split_modules", None) or ())
    layers = [_size(module) for module in model.modules() if type(module).__name__ in kinds]
    whole = _size(model)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Count(whole, trained, whole - sum(layers), max(layers, default=0))


def shares(recipe: Recipe, config: PreTrainedConfig, work: Work, ranks: int) -> tuple[Count, list[Share], list[float]]:
    """The counts, the shares, and the peaks of a pass without and with gradient checkpointing (none where it can't)."""
    model, needs = recipe.model, recipe.estimator.needs()
    size = DTYPES[model.dtype].itemsize
    with imagined(config, model.dtype, model.attention, model.lora) as policy:
        counted = count(policy)
        weights, trained, averaged = _weights(policy, recipe), _trained_bytes(policy), _trained_bytes(policy, least=4)
        task = _pass(recipe, work)
        peaks = [_held(policy, replace(task, recompute=again)) for again in (False, True) if _can(policy, again)]
    moved = DTYPES[recipe.train.precision].itemsize if _mixed(recipe) else size
    peak = peaks[-1] if model.gradient_checkpointing else peaks[0]
    divided = _sharded_peak(recipe, config, task) if _mixed(recipe) else peak
    shares_of_run = [
        Share("weights", weights, weights / ranks),
        Share("gradients", trained, trained / ranks),
        Share("AdamW's two moments", 2 * trained, 2 * trained / ranks),
        Share("gathered for a pass", 0, moved * (counted.outside + 3 * counted.layer) if ranks > 1 else 0),
    ]
    if "value" in needs and recipe.critic is not None:
        critic_config = config if recipe.critic.path is None else config_at(recipe.critic.path).config
        parameters, its = critic_peak(critic_config, model.dtype, model.attention, task)
        shares_of_run.append(Share("critic, trained", 4 * size * parameters, 4 * size * parameters / ranks))
        peak, divided = max(peak, its), max(divided, its)
    beside = {name: float(size) * _parameters(path, recipe, counted) for path, name in _models(recipe).items()}
    if different := {average for _, part in _field_parts(recipe) for average in averages(part)}:
        beside["moving averages"] = len(different) * averaged
    shares_of_run += [Share(name, number, number / ranks) for name, number in beside.items()]
    return counted, [*shares_of_run, Share("activations at their peak", peak, divided)], peaks


def logits(work: Work, config: PreTrainedConfig) -> float:
    """Bytes of a micro-batch's logits, once, in float32."""
    return 4.0 * work.rows * max(work.response, work.demonstration) * int(config.get_text_config().vocab_size)


def cache(config: PreTrainedConfig, size: int) -> float | None:
    """Bytes of keys and values that an engine keeps of each token; None for an architecture that keeps others."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", None)
    width = getattr(text, "head_dim", None) or (text.hidden_size // heads if heads else None)
    keys = getattr(text, "num_key_value_heads", None) or heads
    return None if not width or not keys else 2.0 * size * text.num_hidden_layers * keys * width


def _pass(recipe: Recipe, work: Work) -> Pass:
    heat = recipe.rollout.temperature
    return Pass(
        rows=work.rows,
        prompt=work.prompt,
        response=max(work.response, work.demonstration, 1),
        temperature=heat if isinstance(heat, float) else heat.start,
        entropy="entropy" in recipe.estimator.needs(),
        precision=recipe.train.precision,
        recompute=recipe.model.gradient_checkpointing,
    )


def _sharded_peak(recipe: Recipe, config: PreTrainedConfig, task: Pass) -> float:
    """With weights that FSDP2 gathers in the type of the forward pass, which then casts none."""
    with imagined(config, recipe.train.precision, recipe.model.attention, recipe.model.lora) as policy:
        return _held(policy, task)


def _held(model: PreTrainedModel, task: Pass) -> float:
    """The peak of a pass; NaN if the architecture's code reads values of tensors."""
    try:
        return float(policy_peak(model, task))
    except ModelError:
        raise
    except Exception:  # whatever its code does without them
        return math.nan


def _can(model: PreTrainedModel, recompute: bool) -> bool:
    try:
        if recompute:
            check(model)
    except ModelError:
        return False
    return True


def _mixed(recipe: Recipe) -> bool:
    return recipe.train.precision != "float32"


def _weights(model: PreTrainedModel, recipe: Recipe) -> float:
    lora = recipe.model.lora
    packed = None if lora is None or lora.quantize is None else _PACKED[lora.quantize]
    return sum(
        parameter.numel() * (packed if packed is not None and ".base_layer.weight" in name else parameter.itemsize)
        for name, parameter in model.named_parameters()
    )


def _trained_bytes(model: PreTrainedModel, least: int = 0) -> float:
    """Bytes of the trained parameters, with `least` bytes a number at least."""
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    return float(sum(parameter.numel() * max(parameter.itemsize, least) for parameter in trained))


def _models(recipe: Recipe) -> dict[str | None, str]:
    """The models beside the policy that have memory of their own, each once, with what it is called."""
    names: dict[str | None, str] = {}
    asked = [(recipe.reference.path, "reference")] if "reference_logp" in recipe.estimator.needs() else []
    for name, part in _field_parts(recipe):
        asked += [(path, f"fields.{name}") for path in named_models(part).values()]
    for path, name in asked:
        if path is not None or recipe.model.lora is None:  # the policy without its adapter is there already
            names.setdefault(None if path is None else absolute(path), name)
    return names


def _field_parts(recipe: Recipe) -> list[tuple[str, Part]]:
    """The parts that fill the fields that are read, with the field's name."""
    return [(name, each) for name, part in recipe.fields_read().items() for each in (part, *part.within().values())]


def _parameters(path: str | None, recipe: Recipe, policy: Count) -> int:
    """How many a model beside the policy has; None is a copy of the policy."""
    if path is None:
        return policy.parameters
    with imagined(config_at(path).config, recipe.model.dtype, None, None) as model:
        return _size(model)


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
