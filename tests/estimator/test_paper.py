"""The full-size recipes of the paper: right as they stand, with the numbers they should have, and never run here."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import FullyShardedDataParallelPlugin
from hypothesis import given
from support.methods import BUDGET
from support.tiers import spread
from test_gradients import check as check_method
from test_gradients import of, pinned
from typer.testing import CliRunner

import upge
from upge.cli.main import app
from upge.describe.recipe import explained, rendered
from upge.recipe import check, load_composed
from upge.recipe.catalog import find_recipe
from upge.testing.batches import Case
from upge.testing.strategies import cases

FOLDER = Path(__file__).parents[2] / "recipes" / "paper"
LAUNCH = FOLDER / "fsdp2.json"
MODELS = {
    "qwen-1.5b": "Qwen/Qwen2.5-Math-1.5B",
    "qwen-7b": "Qwen/Qwen2.5-Math-7B",
    "llama-8b": "meta-llama/Llama-3.1-8B",
}
METHODS = {
    "sft": "sft",
    "grpo": "grpo",
    "sft_then_grpo": "sft_then_grpo",
    "luffy": "luffy",
    "srft": "srft",
    "hpt": "hpt_upt",
}
"""Each recipe's name, and the textbook's."""
RATES = {"sft": 5e-5, "hpt": 5e-6}

every = pytest.mark.parametrize(("model", "method"), [(model, method) for model in MODELS for method in METHODS])


def recipe(model: str, method: str, *overrides: str) -> upge.Recipe:
    return upge.load(FOLDER / model / f"{method}.yaml", overrides)


def test_there_is_a_recipe_of_each_method_for_each_model() -> None:
    there = {path.relative_to(FOLDER) for path in FOLDER.glob("*/*.yaml") if path.stem != "model"}
    assert there == {Path(model, f"{method}.yaml") for model in MODELS for method in METHODS}
    assert all(check(path).recipe is None for path in (*FOLDER.glob("*.yaml"), *FOLDER.glob("*/model.yaml")))


@every
def test_the_numbers_are_the_papers(model: str, method: str) -> None:
    found = recipe(model, method)
    assert found.name == f"{model}-{method}"
    assert found.model.path == MODELS[model]
    assert found.model.overrides == (
        {} if model == "llama-8b" else {"rope_theta": 40000.0, "max_position_embeddings": 16384}
    )
    assert (found.model.dtype, found.train.precision, found.model.gradient_checkpointing) == (
        "float32",
        "bfloat16",
        True,
    )
    assert (found.rollout.n, found.rollout.temperature) == (7 if method == "luffy" else 8, 1.0)
    assert (found.rollout.max_tokens, found.rollout.top_p, found.rollout.top_k) == (8192, 1.0, 0)
    assert found.train.prompts // found.train.minibatches == 64
    assert found.train.prompts * found.train.steps == {"sft": 137_984, "sft_then_grpo": 201_984}.get(method, 64_000)
    assert (found.optimizer.weight_decay, found.optimizer.clip_norm, found.optimizer.skip_above) == (0.01, 1.0, 80.0)
    if method != "sft_then_grpo":
        assert found.optimizer.lr == RATES.get(method, 1e-6)
    assert (found.eval.temperature, found.eval.top_p) == (0.6, 0.95)
    assert "reference_logp" not in found.estimator.needs()
    assert found.critic is None


@every
def test_the_data_are_the_papers(model: str, method: str) -> None:
    data = recipe(model, method).data.dump()
    assert (data["use"], data["path"]) == ("huggingface", "Elliott/Openr1-Math-46k-8192")
    row = {
        "data_source": "x",
        "prompt": [{"role": "system", "content": "Think."}, {"role": "user", "content": "6 + 6?"}],
        "target": [{"role": "assistant", "content": "It is 12."}],
        "reward_model": {"ground_truth": "12", "style": "rule"},
    }
    problem = recipe(model, method).data.problem(row, "train-0")  # type: ignore[attr-defined]
    assert (problem.answer, problem.demonstration, problem.id) == ("12", "It is 12.", "train-0")
    assert problem.prompt == row["prompt"]


@pytest.mark.parametrize("model", MODELS)
def test_hpts_gate_and_balance(model: str) -> None:
    estimator = recipe(model, "hpt").estimator
    assert estimator.switch[0].dump()["threshold"] == (0.25 if model == "llama-8b" else 0.0)
    assert estimator.terms["sft"].weight == (0.3 if model == "qwen-1.5b" else 1.0)
    assert estimator.terms["entropy"].weight == 0.001
    assert estimator.terms["rl"].reduction.dump() == {
        "use": "constant",
        "length": 8192,
        "per": "none",
        "count": "active",
    }


@pytest.mark.parametrize("model", MODELS)
def test_the_second_phase_begins_where_the_learning_rate_has_arrived(model: str) -> None:
    found = recipe(model, "sft_then_grpo")
    first = found.estimator.switch[0].dump()["steps"]
    assert found.train.steps - first == 500
    assert found.optimizer.lr.model_dump() == {"start": 5e-5, "end": 1e-6, "steps": first, "shape": "cosine"}  # type: ignore[union-attr]


def textbook_overrides(method: str) -> list[str]:
    """What brings a recipe to the textbook's table: its budget, gate, balance and phases."""
    own = {
        "hpt": ["estimator.switch.threshold=0.0", "estimator.terms.sft.weight=1.0"],
        "sft_then_grpo": ["estimator.switch.steps=32"],
    }
    return [f"rollout.max_tokens={BUDGET}", *own.get(method, [])]


@pytest.mark.parametrize(
    ("model", "method"), spread([(model, method) for model in MODELS for method in METHODS], lambda pair: pair[1])
)
@pinned
@given(cases())
def test_the_gradient_is_the_textbooks(model: str, method: str, case: Case) -> None:
    estimator = recipe(model, method, *textbook_overrides(method)).estimator
    entries = of(METHODS[method])
    assert entries
    for entry in entries:
        check_method(replace(entry, estimator=estimator.model_dump()), case.batch)


@every
def test_it_dumps_to_the_yaml_that_makes_it(model: str, method: str, tmp_path: Path) -> None:
    found = recipe(model, method)
    path = tmp_path / "again.yaml"
    path.write_text(found.model_dump_json())  # JSON is YAML
    assert upge.load(path) == found


@every
def test_it_is_found_by_name_and_has_a_formula(model: str, method: str) -> None:
    path = FOLDER / model / f"{method}.yaml"
    assert find_recipe(f"paper/{model}/{method}") == path
    assert "∇J" in rendered(explained(*load_composed(path)), "text")


@pytest.mark.parametrize(
    "name", spread((f"paper/{model}/{method}" for model in MODELS for method in METHODS), lambda _: "explained")
)
def test_it_is_explained(name: str) -> None:
    shown = CliRunner().invoke(app, ["explain", name])
    assert shown.exit_code == 0, shown.output
    assert "∇J" in shown.output


# How they are launched.


def test_the_launch_file_is_accelerates_and_no_recipe() -> None:
    config = load_config_from_file(str(LAUNCH))
    assert (config.distributed_type, config.num_processes, config.mixed_precision) == ("FSDP", 8, "bf16")
    settings = config.fsdp_config
    assert settings["fsdp_version"] == 2
    assert settings["fsdp_reshard_after_forward"] is True
    assert settings["fsdp_auto_wrap_policy"] == "TRANSFORMER_BASED_WRAP"
    assert settings["fsdp_activation_checkpointing"] is False  # the recipes' own is on
    assert LAUNCH not in FOLDER.rglob("*.yaml")


def test_accelerate_takes_its_settings() -> None:
    settings = load_config_from_file(str(LAUNCH)).fsdp_config
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=settings["fsdp_version"],
        auto_wrap_policy=settings["fsdp_auto_wrap_policy"].lower(),
        reshard_after_forward=settings["fsdp_reshard_after_forward"],
        activation_checkpointing=settings["fsdp_activation_checkpointing"],
        cpu_offload=settings["fsdp_offload_params"],
        state_dict_type=settings["fsdp_state_dict_type"],
        cpu_ram_efficient_loading=settings["fsdp_cpu_ram_efficient_loading"],
    )
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True


def test_the_command_is_a_module_too() -> None:
    said = subprocess.run([sys.executable, "-m", "upge", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == upge.__version__
