"""LoRA by peft: W + (α/rank)·B·A in place of W, of which A and B are trained.

The model keeps its class: adapters are put into its layers, so that sampling and log-probs know nothing of them.
"""

from __future__ import annotations

import copy
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from transformers.pytorch_utils import Conv1D

from upge.errors import ModelError
from upge.files import parse_json
from upge.model import shards
from upge.model.text_scope import within

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class AdapterSettings(Protocol):
    """The settings of a new adapter, such as a recipe's block `model.lora`."""

    @property
    def rank(self) -> int: ...
    @property
    def alpha(self) -> float: ...
    @property
    def targets(self) -> Literal["all-linear"] | tuple[str, ...]: ...
    @property
    def quantize(self) -> Literal["nf4", "fp4", "int8"] | None: ...


STACK = 3
"""Dimensions of a layer's experts where they are one tensor: (experts, in, out) or (experts, out, in)."""
_SHOWN = 4


def divided(model: nn.Module, targets: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """The targets that end names of layers (or of nothing), and those that end names of stacks of experts."""
    stacks = [name for name, parameter in model.named_parameters() if len(shards.shape(parameter)) == STACK]
    layers = [name for name, _ in model.named_modules()]
    of_stacks = [target for target in targets if any(_ends(name, target) for name in stacks)]
    of_layers = [target for target in targets if any(_ends(name, target) for name in layers)]
    return [target for target in targets if target in of_layers or target not in of_stacks], of_stacks


def routers(model: nn.Module) -> Iterator[str]:
    """Linear layers that answer with more than a product, which an adapter would add its own to: Llama 4's routers."""
    for name, module in model.named_modules():
        kind = type(module)
        if isinstance(module, nn.Linear) and kind.__module__.startswith("transformers.models."):
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
    sizes: dict[str, int] = {}
    stacks = set()
    for name, weight in _matrices(model):
        if within(name, without):
            continue
        kind = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        sizes[kind] = sizes.get(kind, 0) + math.prod(shards.shape(weight))
        if len(shards.shape(weight)) == STACK:
            stacks.add(kind.rpartition(".")[2])
    if not sizes:
        return None
    whole = sum(
        math.prod(shards.shape(parameter)) for name, parameter in model.named_parameters() if ".lora_" not in name
    )
    kinds = sorted(sizes, key=lambda kind: -sizes[kind])
    names = ", ".join(kinds[:_SHOWN]) + (f" and {len(kinds) - _SHOWN} more" if len(kinds) > _SHOWN else "")
    share = f"{sum(sizes.values()) / whole:.0%} of the weights"
    hint = f"; stacks of experts get one where model.lora.targets names them: {', '.join(sorted(stacks))}"
    untrained = f"model.lora.targets: all-linear puts no adapter on {names} ({share}), which stay as they are"
    return untrained + (hint if stacks else "")


def _matrices(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The weights that a layer multiplies by and that have no adapter, by name."""
    from peft.tuners.lora.layer import ParamWrapper
    from peft.tuners.tuners_utils import BaseTunerLayer

    wrapped = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    layers = {id(layer.get_base_layer()) for layer in wrapped if not isinstance(layer, ParamWrapper)}
    single = {
        (id(layer.get_base_layer()), layer.parameter_name) for layer in wrapped if isinstance(layer, ParamWrapper)
    }
    ends = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    for place, module in model.named_modules():
        if id(module) in layers | ends or isinstance(module, nn.Embedding | _ConvNd) or ".lora_" in place:
            continue
        for name, weight in module.named_parameters(recurse=False):
            matrix = len(shards.shape(weight)) > 1 and not name.endswith("bias")
            if matrix and (id(module), name) not in single:
                yield re.sub(r"(\.base_layer)+", "", f"{place}.{name}"), weight


WEIGHTS = "adapter_model.safetensors"
"""The file of an adapter, as peft calls it."""
CONFIG = "adapter_config.json"
_HANDLED = re.compile(
    r"(rank|alpha)_pattern keys did not match"  # peft looks for stacks of experts among layers; they have their ranks
    r"|fan_in_fan_out is set to"  # which it then sets as it should be
    r"|exclude_modules="  # what no text reaches has no layer that is a target
    r"|tie_word_embeddings=True"  # shared weights with an adapter are refused
    r"|Could not find a config file in|Unable to fetch remote file"  # to see whether embeddings grew; none do here
)
"""What peft warns of and a run has seen to."""


def adapt(
    model: PreTrainedModel, settings: AdapterSettings, *, base: str | None, seed: int, without: tuple[str, ...] = ()
) -> None:
    """Add a new adapter to a model and freeze the rest; B = 0, so that the model's output is unchanged.
    A and B have the weights' type, but float32 at least.

    Args:
        model: changed in place. settings: the recipe's. seed: of A.
        base: where the model came from, for the adapter's own config; None: random weights.
        without: modules that get none, whatever the targets are.

    Raises:
        ModelError: peft is missing, or a layer's weights are another's too. peft's own: no layer has such a name.
    """
    everywhere = isinstance(settings.targets, str)
    layers, stacks = ([], []) if everywhere else divided(model, tuple(settings.targets))
    adapter = _peft().LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.targets if everywhere else layers,
        target_parameters=stacks or None,
        exclude_modules=_within((*without, *routers(model))),
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]), warned("model.lora"):
        torch.manual_seed(seed)
        model.add_adapter(adapter)
    _refuse_tied(model)
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.itemsize < 4:  # 16 bits would lose its updates
            parameter.data = parameter.data.float()
    adapter.base_model_name_or_path = base
    # Sets until here, which are written in any order.
    adapter.target_modules = sorted(adapter.target_modules)
    adapter.target_parameters = sorted(adapter.target_parameters or ()) or None


def _within(places: tuple[str, ...]) -> str | None:
    """The pattern by which peft selects these modules and all inside them; None without modules."""
    return rf"({'|'.join(map(re.escape, places))})(\..*)?" if places else None


def _refuse_tied(model: PreTrainedModel) -> None:
    """Raise ModelError where an adapter sits on weights that embedding and head share: merged, it would change both."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    ends: list[Any] = [model.get_input_embeddings(), model.get_output_embeddings()]
    plain = [end.get_base_layer() if isinstance(end, BaseTunerLayer) else end for end in ends]
    if plain == ends or None in plain or plain[0].weight is not plain[1].weight:
        return
    raise ModelError(
        f"the head of {type(model).__name__} shares its weights with the embedding, so that an adapter on one of them "
        "can't be merged without the other: leave both out of the targets"
    )


def adapted(model: PreTrainedModel) -> bool:
    """Whether the model has an adapter: one of `adapt`, or peft's wrapper around it."""
    return bool(getattr(model, "_hf_peft_config_loaded", False)) or hasattr(model, "disable_adapter")


@contextmanager
def without_adapter(model: PreTrainedModel) -> Iterator[None]:
    """While open, the model computes without its adapter."""
    wrapped: Any = model
    if shards.sharded(model):
        # peft would have the adapter want no gradient meanwhile, which a divided one would never want again.
        with _unscaled(model):
            yield
        return
    if hasattr(model, "disable_adapter"):
        with wrapped.disable_adapter():
            yield
        return
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()


@contextmanager
def _unscaled(model: PreTrainedModel) -> Iterator[None]:
    """While open, the adapter counts 0."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    scales: list[dict[str, float]] = [layer.scaling for layer in layers]
    kept = [dict(scale) for scale in scales]
    try:
        for scale in scales:
            scale.update(dict.fromkeys(scale, 0.0))
        yield
    finally:
        for scale, before in zip(scales, kept, strict=True):
            scale.update(before)


def merged(model: PreTrainedModel, weights: dict[str, Tensor] | None = None) -> PreTrainedModel:
    """A copy of the model with W + (α/rank)·B·A for its weights, and no adapter.

    Args: weights: of a model that is divided over ranks, whole, with the adapter's; the copy is made of them.

    Raises ModelError: W is quantized.
    """
    if getattr(model, "is_quantized", False):
        raise ModelError(
            "an adapter can't be merged into quantized weights: an engine with its own copy needs whole ones"
        )
    whole = copy.deepcopy(model) if weights is None else _of(weights, model)
    merge(whole)
    return whole


def _of(weights: dict[str, Tensor], like: PreTrainedModel) -> PreTrainedModel:
    """A model with an adapter, made of these weights; what else it has, and is never saved, isn't there."""
    whole = _outline(like)
    whole.load_state_dict(weights, assign=True)
    return whole


def _outline(like: PreTrainedModel) -> PreTrainedModel:
    """A model with an adapter, of the same shapes and without numbers."""
    with torch.device("meta"), warned("model.lora"):
        outline = type(like)(copy.deepcopy(like.config))
        outline.add_adapter(copy.deepcopy(next(iter(like.peft_config.values()))))
    return outline


def merged_outline(model: PreTrainedModel) -> PreTrainedModel:
    """The result of `merged` on the meta device. Raises ModelError unless it has a plain model's weights."""
    outline = _outline(model)
    merge(outline, safe=False)
    if {name: x.shape for name, x in outline.state_dict().items()} != {
        name: shards.shape(x) for name, x in plain_weights(model).items()
    }:
        raise ModelError(f"{type(model).__name__} has other weights than a plain model once its adapter is merged")
    return outline


def merge(model: PreTrainedModel, *, safe: bool = True) -> None:
    """Put the adapter into the weights. Args: safe: raise ValueError where they aren't finite then."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    # From the inside out: what has two adapted parameters, as stacks of experts do, lies in one layer within another.
    for name, module in reversed(list(model.named_modules())):
        if isinstance(module, BaseTunerLayer):
            module.merge(safe_merge=safe)
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    model._hf_peft_config_loaded = False
    vars(model).pop("peft_config", None)


def restore(model: PreTrainedModel, weights: dict[str, Tensor]) -> None:
    """Give the adapter saved weights. Raises ModelError where they are another adapter's."""
    names = {_saved_name(name): name for name in model.state_dict() if ".lora_" in name}
    odd = sorted(names.keys() ^ weights.keys())
    if odd:
        raise ModelError(f"another adapter's weights: {odd[0]} doesn't fit")
    shards.load(model, {names[name]: x for name, x in weights.items()})


def _saved_name(name: str) -> str:
    """The name of an adapter's weight in peft's files, which omit the adapter's name."""
    return "base_model.model." + re.sub(r"(\.lora_\w+)\.\w+", r"\1", name)


def plain_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights without the adapter's, named as in a model that has none."""
    return {plain_name(name): x for name, x in model.state_dict().items() if ".lora_" not in name}


def plain_name(name: str) -> str:
    """The name of a weight in a model without an adapter."""
    return re.sub(r"(\.base_layer)+\.", ".", name)


def base_of(folder: Path) -> str:
    """The base model of the adapter in a folder. Raises ModelError if its config doesn't name one."""
    try:
        base = parse_json((folder / CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{folder}: a PEFT adapter that doesn't name the model to merge it into") from error
    if not isinstance(base, str) or not base:
        raise ModelError(f"{folder}: a PEFT adapter that doesn't name the model to merge it into")
    return base


def merge_from(model: PreTrainedModel, folder: Path) -> None:
    """Merge the adapter in a folder into its base model. Raises ModelError where peft is missing."""
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"{folder}: no {WEIGHTS}; other formats are programs, and are not opened")
    with warned(str(folder)):
        wrapped = _peft().PeftModel.from_pretrained(model, str(folder), is_trainable=False)
        _refuse_tied(model)
        _refuse_lacking(wrapped, folder)
        whole = wrapped.merge_and_unload(safe_merge=True)
    if whole is not model:
        raise ModelError(f"{folder}: an adapter that can't be merged into its model")
    vars(model).pop("peft_config", None)


def _refuse_lacking(wrapped: Any, folder: Path) -> None:
    """Raise ModelError where an adapter's file lacks weights that its config has places for: peft would draw them."""
    expected = _peft().get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    with safe_open(folder / WEIGHTS, framework="pt") as file:
        lacking = sorted(expected.keys() - set(file.keys()))
    if lacking:
        raise ModelError(f"{folder}: {WEIGHTS} lacks {lacking[0]}, which its {CONFIG} has a place for")


@contextmanager
def warned(place: str) -> Iterator[None]:
    """While open, peft's warnings become one line each, of the place that they are about, once; handled ones go."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    texts = dict.fromkeys((" ".join(str(warning.message).split()), warning.category) for warning in caught)
    for text, category in texts:
        if not _HANDLED.search(text) and not issubclass(category, DeprecationWarning | FutureWarning):
            warnings.warn(f"{place}: peft warns: {text[:300]}", stacklevel=3)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelError("model.lora: adapters need peft: pip install 'upge[peft]'") from error
    return peft
