"""A model's config: for random weights, and with a recipe's values in place of an existing model's own.

Transformers keeps any argument that it doesn't know, silently; here a misspelt one is refused, with the nearest
right name.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from upge.errors import ModelError
from upge.suggestions import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

_ROPE = ("rope_parameters", "rope_scaling")
_ELSEWHERE = {"dtype": "dtype", "torch_dtype": "dtype", "model_type": "path"}
_OF_ANY_KIND = ("rope_theta", "partial_rotary_factor")


def configure(arguments: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> PreTrainedConfig:
    """The config of random weights: `model_type` and its arguments; the vocabulary and special ids are the tokenizer's.

    Raises:
        ModelError: no `model_type`, or an argument that it doesn't have. Transformers' own errors: a wrong value.
    """
    settings = dict(arguments)
    kind = settings.pop("model_type", None)
    if not isinstance(kind, str):
        raise ModelError("model.config: set the architecture with model_type, for example 'llama'")
    settings.setdefault("vocab_size", max(tokenizer.get_vocab().values()) + 1)
    # A pad id would be an embedding row without gradient, so it is set only where the tokenizer has one of its own.
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        settings.setdefault(name, getattr(tokenizer, name))
    config = AutoConfig.for_model(kind, **settings)
    known = _known(config)
    for name in sorted(set(arguments) - known - {"model_type"}):
        raise ModelError(f"model.config: {kind} has no argument {name!r}; {did_you_mean(name, known, _UNREAD)}")
    return config


def override(config: PreTrainedConfig, overrides: Mapping[str, Any]) -> PreTrainedConfig:
    """Put a recipe's values into the config of an existing model.

    `rope_theta` goes where transformers keeps it, into `rope_parameters`. `rope_parameters` (or `rope_scaling`) adds to
    what is there; with another `rope_type`, only θ and the rotary share of the old ones stay.

    Args:
        config: changed in place; of a composite one, what it doesn't have itself goes to its text model's.

    Raises:
        ModelError: a name that the config doesn't have. Transformers' own errors: a wrong value.
    """
    for name, value in overrides.items():
        if name in _ELSEWHERE:
            raise ModelError(f"model.overrides: {name} is not overridden here; set model.{_ELSEWHERE[name]}")
        parts = [config, config.get_text_config()]
        owner = next((part for part in parts if name in _known(part)), None)
        if owner is None:
            known = set().union(*map(_known, parts))
            raise ModelError(
                f"model.overrides: {config.model_type} has no argument {name!r}; {did_you_mean(name, known, _UNREAD)}"
            )
        _set(owner, name, value)
    if overrides:
        config.validate()
    return config


def _known(config: PreTrainedConfig) -> set[str]:
    """The arguments that this kind of config has, under any of their names."""
    known = {field.name for field in dataclasses.fields(config)} | set(config.attribute_map)
    known |= _read(type(config).__module__)
    return known | ({"rope_theta", "rope_scaling"} if "rope_parameters" in known else set())


@cache
def _read(module: str) -> frozenset[str]:
    """The config keys that an architecture's code reads although its class doesn't list them, such as `head_dim`."""
    try:
        code = inspect.getsource(importlib.import_module(module.replace(".configuration_", ".modeling_")))
    except (ImportError, OSError, TypeError):
        return frozenset()
    return frozenset(re.findall(r"""getattr\(\s*(?:self\.)?config,\s*["'](\w+)["']""", code))


def _set(config: PreTrainedConfig, name: str, value: Any) -> None:
    rope = getattr(config, "rope_parameters", None)
    if name == "rope_theta" and not hasattr(config, "rope_theta"):
        if any(isinstance(nested, dict) for nested in (rope or {}).values()):
            kinds = ", ".join(sorted(rope or {}))
            raise ModelError(f"model.overrides: this model has a rope_theta for each of {kinds}; set rope_parameters")
        config.rope_parameters = {**(rope or {}), "rope_theta": float(value)}
    elif name in _ROPE and isinstance(value, dict) and isinstance(rope, dict):
        config.rope_parameters = _merged(rope, value)
    else:
        setattr(config, name, value)


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Rope parameters with new ones in them, kind of layer by kind of layer where they come so."""
    if "rope_type" in new and new["rope_type"] != old.get("rope_type"):
        old = {name: value for name, value in old.items() if name in _OF_ANY_KIND}
    both = {name: _merged(old[name], value) for name, value in new.items() if isinstance(old.get(name), dict)}
    return {**old, **new, **both}


_UNREAD = "its code reads none: leave it out"
