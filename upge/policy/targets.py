"""Which weights an adapter sits on: layers by the ends of their names, and stacks of experts, which are no layers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from upge.policy import shards
from upge.policy.reached import within

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STACK = 3
"""Dimensions of a layer's experts where they are one tensor: (experts, in, out) or (experts, out, in)."""
_SHOWN = 4


def divided(model: nn.Module, targets: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The targets that end names of layers (or of nothing), and those that end names of stacks of experts."""
    stacks = [name for name, each in model.named_parameters() if len(shards.shape(each)) == STACK]
    layers = [name for name, _ in model.named_modules()]
    of_stacks = [target for target in targets if any(_ends(name, target) for name in stacks)]
    of_layers = [target for target in targets if any(_ends(name, target) for name in layers)]
    return [target for target in targets if target in of_layers or target not in of_stacks], of_stacks


def routers(model: nn.Module) -> Iterator[str]:
    """Linear layers that answer with more than a product, which an adapter would add its own to: Llama 4's routers."""
    for name, module in model.named_modules():
        own = type(module)
        if isinstance(module, nn.Linear) and own.__module__.startswith("transformers.models."):
            with torch.no_grad():
                answer = module(module.weight.new_zeros(1, module.in_features))
            if not isinstance(answer, Tensor):
                yield name


def _ends(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def bare(model: PreTrainedModel, without: tuple[str, ...] = ()) -> str | None:
    """Which weight matrices between embedding and head have no adapter, in a sentence; None: there are none.

    Args: without: modules that aren't looked at.
    """
    found: dict[str, int] = {}
    stacks = set()
    for name, weight in _matrices(model):
        if within(name, without):
            continue
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        found[kind] = found.get(kind, 0) + math.prod(shards.shape(weight))
        if len(shards.shape(weight)) == STACK:
            stacks.add(kind.rpartition(".")[2])
    if not found:
        return None
    whole = sum(math.prod(shards.shape(each)) for name, each in model.named_parameters() if ".lora_" not in name)
    kinds = sorted(found, key=lambda kind: -found[kind])
    names = ", ".join(kinds[:_SHOWN]) + (f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else "")
    share = f"{sum(found.values()) / whole:.0%} of the weights"
    hint = f"; stacks of experts get one where model.lora.targets names them: {', '.join(sorted(stacks))}"
    untrained = f"model.lora.targets: all-linear puts no adapter on {names} ({share}), which stay as they are"
    return untrained + (hint if stacks else "")


def _matrices(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights that a layer multiplies by and that have no adapter, by name."""
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    layers = {id(each.get_base_layer()) for each in wrapped if not isinstance(each, ParamWrapper)}
    single = {(id(each.get_base_layer()), each.parameter_name) for each in wrapped if isinstance(each, ParamWrapper)}
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for place, module in model.named_modules():
        if id(module) in layers | ends or isinstance(module, nn.Embedding | _ConvNd) or ".lora_" in place:
            continue
        for name, weight in module.named_parameters(recurse=False):
            matrix = len(shards.shape(weight)) > 1 and not name.endswith("bias")
            if matrix and (id(module), name) not in single:
                yield re.sub(r"(\.base_layer)+", "", f"{place}.{name}"), weight
