"""Models that come from adapters, anybody's: they say here what they say in peft, and are saved whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny_models as models
from support.model_probes import logits, refusal
from test_lora import adapted
from transformers import GPT2LMHeadModel

from upge.model import ModelError, load, load_critic
from upge.recipe.schema import Lora


@pytest.fixture
def exact(tmp_path: Path) -> Path:
    """A tiny GPT-2, exact in float64; its head is its embedding."""
    models.policy(models.gpt2()).save(tmp_path / "exact")
    return tmp_path / "exact"


@pytest.mark.needs("peft")
def test_a_model_opened_from_an_adapter_is_saved_as_a_whole_one(exact: Path, tmp_path: Path) -> None:
    adapted(exact).save(tmp_path / "alone", merge=False)
    opened = load(str(tmp_path / "alone"), dtype="float64")
    wanted = logits(opened.model)
    opened.save(tmp_path / "whole")
    torch.testing.assert_close(logits(load(str(tmp_path / "whole"), dtype="float64").model), wanted, rtol=0, atol=1e-10)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "whole", dtype=torch.float64)
    torch.testing.assert_close(logits(theirs), wanted, rtol=0, atol=1e-10)
    again = load(str(tmp_path / "alone"), dtype="float64", lora=Lora(rank=2, alpha=4), seed=1)
    again.save(tmp_path / "on top")
    torch.testing.assert_close(
        logits(load(str(tmp_path / "on top"), dtype="float64").model), wanted, rtol=0, atol=1e-10
    )


FOREIGN: dict[str, dict[str, Any]] = {
    "DoRA": {"use_dora": True},
    "whole layers beside it": {"modules_to_save": ["ln_f"]},
    "tokens of their own": {"trainable_token_indices": [3, 5]},
    "scaled by the rank's root": {"use_rslora": True, "r": 8},
    "ranks by layer": {"rank_pattern": {"c_fc": 1}, "alpha_pattern": {"c_fc": 9}},
}


@pytest.mark.needs("peft")
@pytest.mark.parametrize("kind", FOREIGN)
def test_other_programs_adapters_say_here_what_they_say_in_peft(exact: Path, tmp_path: Path, kind: str) -> None:
    import peft

    theirs = GPT2LMHeadModel.from_pretrained(exact, dtype=torch.float64)
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True, **FOREIGN[kind]}
    wrapped = peft.get_peft_model(theirs, peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    before = logits(wrapped)
    stirred(wrapped)
    wanted = logits(wrapped)
    assert float((wanted - before).abs().max()) > 1e-3, "it says something"
    wrapped.save_pretrained(tmp_path / "theirs")
    opened = load(str(tmp_path / "theirs"), dtype="float64")
    torch.testing.assert_close(logits(opened.model), wanted, rtol=0, atol=1e-5)
    opened.save(tmp_path / "whole")
    torch.testing.assert_close(
        logits(load(str(tmp_path / "whole"), dtype="float64").model), logits(opened.model), rtol=0, atol=1e-10
    )


@pytest.mark.needs("peft")
def test_an_adapter_that_lacks_weights_is_refused(exact: Path, tmp_path: Path) -> None:
    adapted(exact).save(tmp_path / "alone", merge=False)
    file = tmp_path / "alone" / "adapter_model.safetensors"
    weights = load_file(file)
    name = min(weights)
    save_file({key: x for key, x in weights.items() if key != name} | {f"{name}.misnamed": weights[name]}, file)
    assert f"lacks {name}" in refusal(tmp_path / "alone", dtype="float64")


def stirred(model: Any) -> None:
    """Give whatever is trained other numbers."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.needs("peft")
def test_weights_that_embedding_and_head_share_take_no_adapter(exact: Path, tmp_path: Path) -> None:
    for targets in ("lm_head", "wte"):
        assert "shares its weights with the embedding" in refusal(exact, lora=Lora(targets=(targets, "c_attn")))
    models.policy().save(tmp_path / "two")
    assert load(str(tmp_path / "two"), lora=Lora(targets=("lm_head",))).model is not None, "these are two"


@pytest.mark.needs("peft")
def test_a_critic_is_no_adapter(exact: Path, tmp_path: Path) -> None:
    policy = adapted(exact)
    policy.save(tmp_path / "alone", merge=False)
    with pytest.raises(ModelError, match="an adapter; a critic starts from a whole model"):
        load_critic(policy, str(tmp_path / "alone"))
