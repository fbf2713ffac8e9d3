"""The modules that a text's log-probs depend on. Others, such as towers for images, are frozen and saved.

No name decides it: one pass over a few tokens is made, and the graph that autograd keeps of it is walked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING

from upge.errors import ModelError
from upge.model.padding import collate, understood
from upge.model.self_check import precision, undisturbed
from upge.model.self_check import within as within_vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_PROMPT = (3, 5, 2)
_SHOWN = 3


def kind_of(config: PreTrainedConfig) -> Any:
    """The auto class that opens all of a model: of one for images or sounds too, not only what reads text.

    Raises ModelError: it reads by an encoder what it answers, so that prompt and response are not one text.
    """
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{config.model_type} has an encoder for its prompts; a policy is a causal language model")
    return AutoModelForMultimodalLM if type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING else AutoModelForCausalLM


def composite(config: PreTrainedConfig) -> bool:
    """Whether a model has parts with configs of their own, as those for images and sounds do."""
    return bool(getattr(type(config), "sub_configs", None))


def settle(model: PreTrainedModel) -> tuple[str, ...]:
    """Freeze what no text reaches. Returns where that is: the names of whole modules, or of single parameters.

    Raises ModelError: the model refuses text alone, or its output for a token depends on later ones.
    """
    places = unreached(model)
    _refuse_foresight(model)
    freeze(model, places)
    return places


def freeze(model: nn.Module, places: tuple[str, ...]) -> None:
    """Have what is in these places want no gradient."""
    for name, parameter in model.named_parameters():
        if within(name, places):
            parameter.requires_grad_(False)


def within(name: str, places: tuple[str, ...]) -> bool:
    """Whether a parameter or module is one of these places, or in one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def note(model: PreTrainedModel, places: tuple[str, ...]) -> str | None:
    """The note about frozen modules; None if there are none."""
    if not places:
        return None
    frozen = sum(parameter.numel() for name, parameter in model.named_parameters() if within(name, places))
    share = frozen / max(1, sum(parameter.numel() for parameter in model.parameters()))
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return (
        f"model: no text reaches {', '.join(places[:_SHOWN])}{more} ({share:.0%} of the weights): frozen, saved as is"
    )


def unreached(model: PreTrainedModel, forward: Callable[..., Any] | None = None) -> tuple[str, ...]:
    """The modules, else parameters, that no text's logits depend on; of frozen ones, those that aren't called.

    Args: forward: what to call in place of the model. Raises ModelError: it refuses text alone.
    """
    with undisturbed(model), torch.enable_grad(), _called(model) as called:
        ids = reached(_outputs(model, (4, 1, 6), forward or model))
    names = {
        f"{place}.{name}".removeprefix(".")
        for place, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) not in ids and (parameter.requires_grad or module not in called)
    }
    return tuple(_places(model, names))


@contextmanager
def _called(model: nn.Module) -> Iterator[set[nn.Module]]:
    """While open, the modules that have been called gather."""
    called: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda called_module, _: called.add(called_module))
        for module in model.modules()
    ]
    try:
        yield called
    finally:
        for handle in handles:
            handle.remove()


def _outputs(model: PreTrainedModel, response: tuple[int, ...], forward: Callable[..., Any]) -> Tensor:
    """(1, L, V or labels) a model's outputs for an arbitrary prompt with this response without its last token."""
    batch = collate(within_vocabulary(model, [(_PROMPT, response)]), 0, model.device)
    try:
        logits: Tensor = forward(input_ids=batch.tokens, **understood(model, batch)).logits
    except Exception as error:  # whatever a model makes of text alone
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise ModelError(f"{type(model).__name__} refuses text alone ({reason})") from error
    return logits


def _refuse_foresight(model: PreTrainedModel) -> None:
    """Raise ModelError where the same tokens, with others after them, get other logits."""
    with undisturbed(model):
        ours, theirs = (_outputs(model, response, model)[:, : len(_PROMPT)] for response in ((4, 1, 6), (2, 7, 6)))
    bound = 0.1 if min(ours.itemsize, precision(model)) < 4 else 1e-3
    if float((ours - theirs).abs().max()) > bound * max(1.0, float(ours.abs().max())):
        raise ModelError(
            f"{type(model).__name__}: its output at a token depends on later tokens, "
            "so it has no log-probs to train; use a causal language model"
        )


def reached(x: Tensor) -> set[int]:
    """The ids of the leaves that a tensor's gradient goes to."""
    ids: set[int] = set()
    seen: set[Any] = set()
    left: list[Any] = [x.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            ids.add(id(node.variable))
        left += [following for following, _ in node.next_functions]
    return ids


def _places(model: nn.Module, names: set[str], place: str = "") -> Iterator[str]:
    """The outermost modules all of whose parameters have these names, and the parameters that have them elsewhere."""
    for name, parameter in model.named_parameters(recurse=False):
        if f"{place}{name}" in names and parameter is not None:
            yield f"{place}{name}"
    for child, module in model.named_children():
        parameters = [f"{place}{child}.{name}" for name, _ in module.named_parameters()]
        if parameters and names.issuperset(parameters):
            yield f"{place}{child}"
        elif parameters:
            yield from _places(module, names, f"{place}{child}.")
