"""Whether the responses to a prompt may share its pass through a model: read from its config, then proven on it."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from upge.policy import shards
from upge.policy.rows import Padded, Tokens, collate

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Ask = Callable[[Padded], Tensor]
"""(T,) a model's log-probs."""

# Configs that have one of these bound how far a token looks by its place in the row, whatever the mask says. The
# proof's rows are too short to show it.
_BOUNDS = ("sliding_window", "window_size", "keep_window_size")

_PROVEN: WeakKeyDictionary[nn.Module, dict[str, bool]] = WeakKeyDictionary()
_PROMPTS: Sequence[tuple[Tokens, Tokens]] = (
    *(((3, 5, 2), response) for response in ((4, 1, 6), (7,), (2, 2, 5, 3))),
    *(((6, 1), response) for response in ((1, 4), (5, 7, 2))),
)


def reach(model: PreTrainedModel, ask: Ask) -> float | None:
    """For `collate`: how long a row may be before attention costs as much as the rest; None where nothing is shared.

    `ask` is tried on a few made-up tokens, once for each model and kind of attention. A model that answers otherwise
    than without sharing keeps rows of their own, with a warning.
    """
    if not _may(model):
        return None
    kind = str(model.config._attn_implementation)
    known = _PROVEN.setdefault(model, {})
    if kind not in known:
        fault = _fault(model, ask)
        known[kind] = fault is None
        if fault:
            warnings.warn(f"{type(model).__name__}: every response runs its prompt again, since {fault}", stacklevel=4)
    return 6.0 * model.config.get_text_config().hidden_size if known[kind] else None


def _may(model: PreTrainedModel) -> bool:
    """Whether a model looks as if it took a mask of pairs and positions that start again."""
    if shards.sharded(model) or any(isinstance(each, FakeTensor) or each.is_meta for each in model.parameters()):
        return False  # ranks would try it at different times; without numbers there is nothing to try
    config = model.config.get_text_config()
    parameters = inspect.signature(type(model).forward).parameters
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    rope = getattr(config, "rope_parameters", None) or {}
    return (
        {"attention_mask", "position_ids"} <= parameters.keys()
        and model.config._attn_implementation in ("sdpa", "eager")
        and kinds == {"full_attention"}
        and not _bounded(config)
        and not getattr(config, "alibi", False)
        and not getattr(model, "_is_stateful", False)
        and not config.is_encoder_decoder
        and "mrope_section" not in rope
        and hasattr(config, "hidden_size")
    )


def _bounded(config: PreTrainedConfig) -> bool:
    """Whether a token doesn't look all the way back."""
    unused = {"sliding_window"} if _without_windows(config) else set()
    return any(getattr(config, name, None) for name in _BOUNDS if name not in unused)


def _without_windows(config: PreTrainedConfig) -> bool:
    """Whether the config has a sliding window and says that no layer uses it."""
    return bool(getattr(config, "layer_types", None)) or not getattr(config, "use_sliding_window", True)


@torch.no_grad()
def _fault(model: PreTrainedModel, ask: Ask) -> str | None:
    """What is wrong with sharing on this model; None if nothing is."""
    size, device = int(model.config.get_text_config().vocab_size), model.device
    plain = collate(_cut(_PROMPTS, size), 0, device)
    shared = collate(_cut(_PROMPTS, size), 0, device, reach=1e9)
    other = [(prompt, [token + 1 for token in response]) for prompt, response in _PROMPTS]
    sibling = collate(_cut([_PROMPTS[0], *other[1:]], size), 0, device, reach=1e9)
    onward = replace(shared, positions=torch.arange(shared.tokens.shape[1], device=device).expand_as(shared.tokens))
    try:
        with torch.autocast(device.type, enabled=False):  # half precision's rounding would pass for a fault
            own, tree, changed, wrong = (ask(batch) for batch in (plain, shared, sibling, onward))
    except Exception as error:  # whatever a model makes of a mask that it doesn't know
        return f"it refuses a mask of pairs ({type(error).__name__}: {str(error)[:100]})"
    apart, tolerance = float((tree - own).abs().max()), _tolerance(model)
    first = int(shared.lengths[0])
    if not apart <= tolerance:
        return f"sharing moves log-probs by {apart:.1g}"
    if not float((changed[:first] - tree[:first]).abs().max()) <= tolerance / 10:
        return "a response sees what others say"
    # Where positions make no difference, it can't be told whether they were heard.
    if not 4 * apart <= float((wrong - own).abs().max()):
        return "it doesn't tell positions apart"
    return None


def _cut(sequences: Sequence[tuple[Tokens, Tokens]], size: int) -> list[tuple[list[int], list[int]]]:
    """The same with ids that a small vocabulary has."""
    return [
        ([token % size for token in prompt], [token % size for token in response]) for prompt, response in sequences
    ]


def _tolerance(model: PreTrainedModel) -> float:
    """Nats by which rounding may move a log-prob."""
    widest = max((each.itemsize for each in model.parameters() if each.is_floating_point()), default=4)
    return {8: 1e-5, 4: 1e-4}.get(widest, 0.1)
