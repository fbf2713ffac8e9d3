"""This process among the others of a run, as accelerate launched it."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers.utils.logging import disable_progress_bar

from upge.distributed import deepspeed_config, fsdp
from upge.distributed.ranks import Ranks
from upge.recipe.schema import Model, Train


def check(train: Train, model: Model) -> None:
    """Raise InputError where accelerate's config requests what a run can't do, before accelerate tries."""
    quantized = model.lora is not None and model.lora.quantize is not None
    fsdp.check(precision=train.precision, dtype=model.dtype, quantized=quantized)


def open_ranks(train: Train, model: Model, **logging: Any) -> Ranks:
    """This process's ranks, with torch configured by the recipe."""
    check(train, model)
    # accelerate keeps one state for each process; a second run, with another precision, must not get the first one's.
    AcceleratorState._reset_state()
    torch.use_deterministic_algorithms(True, warn_only=True)
    disable_progress_bar()
    if train.threads is not None:
        torch.set_num_threads(train.threads)
    # accelerate's own accumulation stays at 1: the estimator's counts are over the whole optimizer step already.
    with deepspeed_config.unseen():
        accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # else several processes without a GPU would not find each other
            mixed_precision={"float32": "no", "bfloat16": "bf16", "float16": "fp16"}[train.precision],
            gradient_accumulation_steps=1,
            **logging,
        )
    return Ranks(accelerator)
