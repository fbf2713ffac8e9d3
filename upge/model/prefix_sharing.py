"""Whether the responses to a prompt may share its pass through a model: read from its config, then proven on it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from upge.model import self_check, shards
from upge.model.padding import Padded, PrefixSharing, collate
from upge.model.self_check import Proof

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Ask = Callable[[Padded], Tensor]
"""(T,) a model's log-probs."""

# Configs that have one of these bound how far a token looks by its place in the row, whatever the mask says. The
# proof's rows are too short to show it.
_BOUNDS = ("sliding_window", "window_size", "keep_window_size")

_FAR = PrefixSharing(1e9, branching=False)
"""Everything is shared."""

_SHARES = Proof("{model}: every response runs its prompt again, since {fault}", failing="it refuses a mask of pairs")


def reach(model: PreTrainedModel, ask: Ask) -> PrefixSharing | None:
    """For `collate`: how far a row may go that responses share; None where nothing is shared.

    `ask` is tried on a few made-up tokens, once for each model and kind of attention. A model that answers otherwise
    than without sharing keeps rows of their own, with a warning.
    """
    if not _may(model):
        return None
    kind = str(model.config._attn_implementation)
    proven = _SHARES.holds(model, kind, partial(_fault, model, ask), stacklevel=5)
    return PrefixSharing(6.0 * model.config.get_text_config().hidden_size, branching=kind == "sdpa") if proven else None


def _may(model: PreTrainedModel) -> bool:
    """Whether a model looks as if it took a mask of pairs and positions that start again."""
    if shards.sharded(model) or any(
        isinstance(parameter, FakeTensor) or parameter.is_meta for parameter in model.parameters()
    ):
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
    """Whether the config has a sliding window and declares that no layer uses it."""
    return bool(getattr(config, "layer_types", None)) or not getattr(config, "use_sliding_window", True)


def _fault(model: PreTrainedModel, ask: Ask) -> str | None:
    """The reason why responses of this model can't share a row; None if they can."""
    device, known = model.device, self_check.sequences(model)
    plain, shared = collate(known, 0, device), collate(known, 0, device, reach=_FAR)
    other = [(prompt, [token + 1 for token in response]) for prompt, response in known]
    sibling = collate(self_check.within(model, [known[0], *other[1:]]), 0, device, reach=_FAR)
    onward = replace(shared, positions=torch.arange(shared.tokens.shape[1], device=device).expand_as(shared.tokens))
    reference, tree, changed, wrong = (ask(batch) for batch in (plain, shared, sibling, onward))
    apart, tolerance = float((tree - reference).abs().max()), _tolerance(model)
    first = int(shared.lengths[0])
    if not apart <= tolerance:
        return f"sharing moves log-probs by {apart:.1g}"
    if not float((changed[:first] - tree[:first]).abs().max()) <= tolerance / 10:
        return "a response depends on other responses"
    # If positions make no difference, the test can't verify that the model uses them.
    if not 4 * apart <= float((wrong - reference).abs().max()):
        return "its log-probs don't depend on positions"
    return None


def _tolerance(model: PreTrainedModel) -> float:
    """Nats by which rounding may move a log-prob."""
    return {8: 1e-5, 4: 1e-4}.get(self_check.precision(model), 0.1)
