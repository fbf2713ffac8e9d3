"""Models sharded over ranks by accelerate's config: by FSDP2 or DeepSpeed; everything else is refused.

Without GPUs accelerate's FSDP would leave models whole; there upge divides them, by the same torch functions over gloo.
DeepSpeed is upge's own to call, everywhere: see `upge.distributed.zero`.
"""

from __future__ import annotations

import os
import warnings

import torch
from accelerate import Accelerator, DistributedType
from torch import nn

from upge.distributed import deepspeed_config
from upge.errors import InputError
from upge.model import shards

_OTHERS = {
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "parallelism within the layers (parallelism_config)",
}


def check(*, precision: str, dtype: str, quantized: bool) -> None:
    """Raise InputError where accelerate's config requests what a run can't do, before accelerate tries.

    Args: precision: of the passes. dtype: of the parameters. quantized: whether weights are in 4 or 8 bits.
    """
    for variable, name in _OTHERS.items():
        if _on(variable):
            raise InputError(
                f"accelerate's config requests {name}: a run shards models by FSDP2 "
                "(distributed_type: FSDP with fsdp_version: 2) or DeepSpeed, or keeps them whole (MULTI_GPU)"
            )
    if deepspeed_config.requested():
        deepspeed_config.check(precision=precision, dtype=dtype, quantized=quantized)
    elif _fsdp():
        _check_fsdp(precision, quantized=quantized)


def _check_fsdp(precision: str, *, quantized: bool) -> None:
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise InputError("accelerate's config requests FSDP of version 1: set fsdp_version: 2 in its fsdp_config")
    for variable in ("FSDP_OFFLOAD_PARAMS", "FSDP_CPU_RAM_EFFICIENT_LOADING"):
        if _on(variable):
            raise InputError(f"accelerate's config requests {variable.lower()}, which a run can't do: set it to false")
    if _on("FSDP_ACTIVATION_CHECKPOINTING"):
        raise InputError(
            "accelerate's config requests fsdp_activation_checkpointing, which would rename the parameters: "
            "set it to false, and model.gradient_checkpointing: true in the recipe"
        )
    if quantized:
        raise InputError("model.lora.quantize: quantized weights can't be divided by FSDP: run it with MULTI_GPU")
    if precision == "float16":
        raise InputError(
            "train.precision: float16's loss scale would differ between ranks of a divided model: set it to bfloat16"
        )


def requested() -> str | None:
    """The kind of sharding in accelerate's config, "DeepSpeed" or "FSDP"; None for neither."""
    if deepspeed_config.requested():
        return "DeepSpeed"
    return "FSDP" if _fsdp() else None


def by_deepspeed(accelerator: Accelerator) -> bool:
    """Whether models in training are DeepSpeed's; one process has nothing to divide."""
    return deepspeed_config.requested() and accelerator.num_processes > 1


def settings(accelerator: Accelerator) -> list[str]:
    """Set accelerate's FSDP options by the run's rules; return notes about them."""
    if (by := requested()) is None:
        return []
    if accelerator.num_processes == 1:
        return [f"accelerate's config requests {by}, but there is one process: the model stays whole"]
    if by == "DeepSpeed":
        return []
    # It warns of in-place operations on outputs, which don't occur here.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view", UserWarning)
    if accelerator.distributed_type == DistributedType.FSDP:
        # accelerate would sum gradients over ranks in the type of the passes.
        accelerator.state.fsdp_plugin.mixed_precision_policy = shards.precision(_dtype(accelerator))
        return []
    return [f"accelerate has no FSDP without GPUs: upge divides the model over {accelerator.num_processes} processes"]


def divide(model: nn.Module, accelerator: Accelerator) -> None:
    """Shard a model over ranks if the config requests it and accelerate doesn't do it."""
    if requested() == "FSDP" and accelerator.num_processes > 1:
        model.to(accelerator.device)
        shards.divide(model, _dtype(accelerator))


def own(accelerator: Accelerator) -> bool:
    """Whether upge divides the model in training, for accelerate doesn't."""
    several = requested() == "FSDP" and accelerator.num_processes > 1
    return several and accelerator.distributed_type != DistributedType.FSDP


def _dtype(accelerator: Accelerator) -> torch.dtype | None:
    """The type of the passes, where it isn't the parameters' own."""
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)


def _fsdp() -> bool:
    return _on("ACCELERATE_USE_FSDP")


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")
