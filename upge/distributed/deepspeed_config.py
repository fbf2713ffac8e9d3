"""DeepSpeed's settings in accelerate's config: the stage of ZeRO and its communication. The recipe sets the rest.

accelerate's launcher hands its config on as environment variables, one of which may name a DeepSpeed config file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.files import parse_json

VARIABLE = "ACCELERATE_USE_DEEPSPEED"
_FILE = "ACCELERATE_DEEPSPEED_CONFIG_FILE"
_STAGE = "ACCELERATE_DEEPSPEED_ZERO_STAGE"

_COMMUNICATION = {
    *("allgather_partitions", "allgather_bucket_size", "overlap_comm", "reduce_scatter", "reduce_bucket_size"),
    *("sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_max_live_parameters", "stage3_max_reuse_distance"),
}
"""Of `zero_optimization`: what changes how ZeRO goes about it, and not what comes out."""

_DONE = {"contiguous_gradients", "stage3_gather_16bit_weights_on_model_save"}
"""Keys that are true in every run, so that any other value is an error."""

_OFFLOADED = "nothing is offloaded: set it to none; zero_stage: 3 and more ranks leave less on each"

_INSTEAD = {
    "optimizer": "the recipe has AdamW, in its block optimizer",
    "scheduler": "set optimizer.lr and optimizer.warmup in the recipe",
    "gradient_clipping": "set optimizer.clip_norm in the recipe",
    "gradient_accumulation_steps": "set train.micro_batch_tokens in the recipe",
    "train_micro_batch_size_per_gpu": "set train.micro_batch_tokens in the recipe",
    "train_batch_size": "set train.prompts in the recipe",
    "fp16": "set train.precision: bfloat16 in the recipe",
    "bf16": "set train.precision: bfloat16 in the recipe",
    "torch_autocast": "set train.precision: bfloat16 in the recipe",
    "activation_checkpointing": "set model.gradient_checkpointing: true in the recipe",
    "offload_optimizer": _OFFLOADED,
    "offload_optimizer_device": _OFFLOADED,
    "offload_param": _OFFLOADED,
    "offload_param_device": _OFFLOADED,
    "zero3_init_flag": "every rank opens the whole model first: set it to false",
    "deepspeed_moe_layer_cls_names": "upge doesn't support it",
}
"""The advice for each key of the config."""

_VARIABLES = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "gradient_accumulation_steps",
    "ACCELERATE_GRADIENT_CLIPPING": "gradient_clipping",
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "offload_optimizer_device",
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "offload_param_device",
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": "zero3_init_flag",
    "ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "deepspeed_moe_layer_cls_names",
}
"""Keys of accelerate's deepspeed_config, by the variables that its launcher makes of them."""


def requested() -> bool:
    """Whether accelerate's config requests DeepSpeed."""
    return os.environ.get(VARIABLE, "").lower() in ("1", "true", "yes")


def stage() -> int:
    """The stage of ZeRO: what is divided over ranks is moments (1), and gradients (2), and parameters (3)."""
    return int(zero()["stage"])


def zero() -> dict[str, Any]:
    """DeepSpeed's block `zero_optimization`. Raises InputError where there is no such file or stage."""
    settings = _file().get("zero_optimization", {})
    communication = {key: value for key, value in settings.items() if key in _COMMUNICATION and value != "auto"}
    stage = settings.get("stage", "auto")
    stage = os.environ.get(_STAGE, "2") if stage == "auto" else stage
    if str(stage) not in ("1", "2", "3"):
        raise InputError(
            f"accelerate's config requests stage {stage} of ZeRO: set zero_stage to 1, 2 or 3, "
            "or leave models whole (MULTI_GPU)"
        )
    return {"stage": int(stage), **communication}


def check(*, precision: str, dtype: str, quantized: bool) -> None:
    """Raise InputError if the config sets what the recipe sets, or what a run can't do; see `fsdp.check`."""
    zero()
    for place, value in _other_settings():
        key = place.rpartition(".")[2]
        instead = _INSTEAD.get(key, "a run can't do that: leave it out")
        raise InputError(f"accelerate's config for DeepSpeed sets {place} to {value}: {instead}")
    if precision == "float16":
        raise InputError("train.precision: float16's loss scale isn't done under DeepSpeed: set it to bfloat16")
    if quantized:
        raise InputError("model.lora.quantize: quantized weights aren't done under DeepSpeed: run it with MULTI_GPU")
    if dtype != "float32":
        raise InputError(
            f"model.dtype: DeepSpeed keeps parameters and moments in float32, not {dtype}: set it to "
            "float32 (train.precision: bfloat16 computes in bfloat16 all the same)"
        )
    if find_spec("deepspeed") is None:
        raise InputError("accelerate's config requests DeepSpeed: pip install 'upge[deepspeed]'")


def _other_settings() -> Iterator[tuple[str, Any]]:
    """The config's settings beyond ZeRO and its communication, as (key, value)."""
    for variable, key in _VARIABLES.items():
        value = os.environ.get(variable, "")
        harmless = ("", "auto", "none", "false", "1") if key == "gradient_accumulation_steps" else _NOTHING
        if value.lower() not in harmless:
            yield key, value
    file = _file()
    for key, value in file.get("zero_optimization", {}).items():
        says = value not in (True, "auto") if key in _DONE else _says(value)
        if key not in _COMMUNICATION | {"stage"} and says:
            yield f"zero_optimization.{key}", value
    for key, value in file.items():
        if key != "zero_optimization" and _says(value) and (key, value) != ("gradient_accumulation_steps", 1):
            yield key, value


_NOTHING = ("", "auto", "none", "false")


def _says(value: Any) -> bool:
    """Whether a value is one: not "auto", nor off."""
    if isinstance(value, Mapping):
        off = not _says(value.get("enabled", True)) or value.get("device") == "none"
        return not off and any(map(_says, value.values()))
    return value not in (None, False, "auto", "none")


def _file() -> dict[str, Any]:
    """DeepSpeed's own config file, where accelerate's names one."""
    named = os.environ.get(_FILE, "none")
    if named.lower() in ("", "none"):
        return {}
    try:
        config = parse_json(Path(named).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"accelerate's deepspeed_config_file: {named} can't be read ({error})") from error
    if not isinstance(config, dict) or not isinstance(config.get("zero_optimization", {}), dict):
        raise InputError(f"accelerate's deepspeed_config_file: {named} is no DeepSpeed config")
    return config


@contextmanager
def unseen() -> Iterator[None]:
    """While open, the environment doesn't request DeepSpeed.

    An Accelerator made meanwhile is one of data parallelism. Accelerate's DeepSpeed wrapper steps inside `backward`,
    before the gradient's norm can be checked, and exists on GPUs only. A run creates the engine itself (`zero.py`).
    """
    kept = os.environ.pop(VARIABLE, None)
    try:
        yield
    finally:
        if kept is not None:
            os.environ[VARIABLE] = kept
