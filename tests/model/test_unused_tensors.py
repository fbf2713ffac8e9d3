"""Tensors of a checkpoint that the model's class has no place for: told when it is opened, and of what is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny
from support import tiny_models as models
from transformers import LlamaForCausalLM, PreTrainedModel

import upge
from upge.model import load
from upge.train.run import train


def checkpoint(folder: Path, *names: str) -> str:
    """A tiny Llama with more tensors than it has a place for."""
    models.policy().save(folder)
    file = folder / "model.safetensors"
    save_file(load_file(file) | {name: torch.ones(2, 2) for name in names}, file, {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("declared", [None, [r"^mtp.*", r"model\.layers\.2.*"]], ids=["unknown", "ignored"])
def test_tensors_without_a_place_are_told_once_with_their_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: list[str] | None
) -> None:
    """Also those that the class says it ignores, as layers for multi-token prediction."""
    monkeypatch.setattr(LlamaForCausalLM, "_keys_to_ignore_on_load_unexpected", declared)
    path = checkpoint(tmp_path, "mtp.fc.weight", "model.layers.2.mlp.up_proj.weight")
    policy = load(path)
    assert policy.left == ("model.layers.2.mlp.up_proj.weight", "mtp.fc.weight")
    assert [note for note in policy.notes if "tensor" in note] == [
        "model: 2 tensors of the checkpoint have no place in LlamaForCausalLM and aren't loaded, for example "
        "model.layers.2.mlp.up_proj.weight"
    ]
    assert PreTrainedModel._adjust_missing_and_unexpected_keys.__module__ == PreTrainedModel.__module__


def test_what_the_config_says_anyway_is_nothing_that_is_lacking(tmp_path: Path) -> None:
    policy = load(checkpoint(tmp_path, "model.layers.0.self_attn.rotary_emb.inv_freq", "h.0.attn.bias"))
    assert policy.left == ()
    assert policy.notes == ()


def test_a_run_ends_with_what_its_model_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "start", "mtp.fc.weight")
    recipe = tiny.recipe(tmp_path, train={"steps": 0}, eval={"splits": []})
    given = ["model=null", f"model={path}"]
    folder = train(upge.load(recipe, given))
    said = capsys.readouterr().err
    assert said.count("aren't loaded, for example mtp.fc.weight") == 1
    assert "the trained model lacks 1 tensor that its checkpoint had, for example mtp.fc.weight" in said
    assert "mtp.fc.weight" not in load_file(folder / "model" / "model.safetensors")
