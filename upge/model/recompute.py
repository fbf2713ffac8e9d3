"""Gradient checkpointing: a layer's activations are forgotten, and computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from upge.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def check(model: PreTrainedModel) -> None:
    """Raise ModelError where a model's layers can't be computed again."""
    if not any(isinstance(module, GradientCheckpointingLayer) for module in model.modules()):
        raise ModelError(f"model.gradient_checkpointing: {type(model).__name__} has no layers that can be recomputed")


@contextmanager
def recomputed(model: PreTrainedModel) -> Iterator[None]:
    """While open, forward passes with gradient keep each layer's input and nothing that follows from it.

    Transformers has a switch for this that acts in training mode alone, where there would be dropout too. So the layers
    that it marks for it are wrapped here, for as long as a forward pass takes: sampling and copies never see it.
    """
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    kept = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_forgetting, layer.forward)
    try:
        yield
    finally:
        for layer, original in zip(layers, kept, strict=True):
            del layer.forward
            if original is not None:
                layer.forward = original


def _forgetting(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    if "past_key_values" in named:
        named["past_key_values"] = None  # a second pass would add to it again
    return checkpoint(forward, *inputs, use_reentrant=False, **named)
