"""What accelerate's config may ask of DeepSpeed, and what is refused, by what name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support import tiny

import upge
from upge.distributed import accelerator, deepspeed_config, fsdp
from upge.errors import InputError

QUANTIZED = "model={path: 'upge_parts:data/lab/base', config: null, lora: {quantize: nf4, save: adapter}}"
PLACEHOLDERS = {
    "train_batch_size": "auto",
    "train_micro_batch_size_per_gpu": "auto",
    "gradient_accumulation_steps": 1,
    "gradient_clipping": "auto",
    "bf16": {"enabled": "auto"},
    "fp16": {"enabled": False, "loss_scale": 0, "loss_scale_window": 1000},
    "wall_clock_breakdown": False,
    "zero_optimization": {
        "stage": 3,
        "overlap_comm": True,
        "reduce_bucket_size": "auto",
        "stage3_prefetch_bucket_size": 1000,
        "contiguous_gradients": True,
        "stage3_gather_16bit_weights_on_model_save": True,
        "offload_optimizer": {"device": "none", "pin_memory": True},
    },
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerate's launcher sets it; and DeepSpeed is there, whatever is installed."""
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(deepspeed_config, "find_spec", lambda name: name)


def named(folder: Path, config: Any) -> dict[str, str]:
    """A DeepSpeed config file, as accelerate names it."""
    (folder / "zero.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return {"ACCELERATE_DEEPSPEED_CONFIG_FILE": str(folder / "zero.json")}


def check(folder: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], *overrides: str) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = upge.load(tiny.recipe(folder), overrides)
    accelerator.check(recipe.train, recipe.model)


@pytest.mark.parametrize(
    ("variables", "zero"),
    [
        ({}, {"stage": 2}),
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1"}, {"stage": 1}),
        (
            {"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none", "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false"},
            {"stage": 2},
        ),
    ],
)
def test_a_stage_is_all_that_has_to_be_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], zero: dict[str, Any]
) -> None:
    check(tmp_path, monkeypatch, variables)
    assert deepspeed_config.zero() == zero
    assert fsdp.requested() == "DeepSpeed"


def test_a_file_may_say_how_ranks_communicate_and_leave_the_rest_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(tmp_path, monkeypatch, named(tmp_path, PLACEHOLDERS))
    assert deepspeed_config.zero() == {"stage": 3, "overlap_comm": True, "stage3_prefetch_bucket_size": 1000}


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"optimizer": {"type": "AdamW", "params": {"lr": "auto"}}}, "optimizer .*the recipe has AdamW"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler .*optimizer.warmup"),
        ({"gradient_clipping": 1.0}, "gradient_clipping to 1.0: set optimizer.clip_norm"),
        ({"gradient_accumulation_steps": 4}, "gradient_accumulation_steps to 4: .*train.micro_batch_tokens"),
        ({"train_micro_batch_size_per_gpu": 2}, "train_micro_batch_size_per_gpu .*train.micro_batch_tokens"),
        ({"train_batch_size": 64}, "train_batch_size .*train.prompts"),
        ({"bf16": {"enabled": True}}, "bf16 .*train.precision: bfloat16"),
        ({"fp16": {"enabled": True}}, "fp16 .*train.precision: bfloat16"),
        ({"activation_checkpointing": {"partition_activations": True}}, "model.gradient_checkpointing: true"),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, "zero_optimization.offload_optimizer"),
        ({"zero_optimization": {"offload_param": {"device": "nvme", "nvme_path": "/x"}}}, "zero_stage: 3"),
        ({"zero_optimization": {"contiguous_gradients": False}}, "contiguous_gradients"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "zero_quantized_weights .*leave it out"),
        ({"zero_optimization": {"stage": 0}}, "stage 0 .*MULTI_GPU"),
        ({"communication_data_type": "bf16"}, "communication_data_type"),
        ([], "no DeepSpeed config"),
        ("{", "can't be read"),
    ],
)
def test_what_the_recipe_says_and_what_a_run_cannot_do_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Any, said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check(tmp_path, monkeypatch, named(tmp_path, config))


@pytest.mark.parametrize(
    ("variables", "overrides", "said"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "0"}, (), "stage 0"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "2"}, (), "gradient_accumulation_steps to 2"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "1.0"}, (), "gradient_clipping to 1.0: set optimizer.clip_norm"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, (), "offload_optimizer_device to cpu"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, (), "offload_param_device to nvme"),
        ({"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, (), "zero3_init_flag"),
        ({"ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES": "Mixtral"}, (), "deepspeed_moe_layer_cls_names"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "nowhere.json"}, (), "nowhere.json can't be read"),
        ({}, ("train.precision=float16",), "set it to bfloat16"),
        ({}, ("model.dtype=float64",), "model.dtype: .*float32"),
        ({}, (QUANTIZED,), "model.lora.quantize"),
    ],
)
def test_so_is_what_the_launcher_or_the_recipe_asks_for_in_vain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        check(tmp_path, monkeypatch, variables, *overrides)


def test_without_deepspeed_its_name_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deepspeed_config, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'upge\[deepspeed\]'"):
        check(tmp_path, monkeypatch, {})


def test_accelerate_does_not_see_what_is_asked_for() -> None:
    with deepspeed_config.unseen():
        assert "ACCELERATE_USE_DEEPSPEED" not in os.environ
    assert deepspeed_config.requested()
