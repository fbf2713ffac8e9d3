"""Models that read images or sounds too: what no text reaches is frozen, and all that they came with is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support import composites, tiny
from support import tiny_models as models
from support.model_probes import HOT, SEQUENCES, gradients, lines, logits, refusal
from torch import nn
from transformers import AutoConfig, AutoModelForMultimodalLM, AutoTokenizer, BartConfig, BartForConditionalGeneration

import upge
from upge.model import ModelError, load, text_scope
from upge.model.config import configure
from upge.plan.fake_model import imagined
from upge.plan.plan import plan
from upge.recipe.schema import Lora
from upge.train.run import train

PROCESSOR = '{"do_resize": true}'


def saved(folder: Path, kind: str, tokenizer: Any = None) -> Path:
    """A tiny checkpoint of an architecture, with the settings of its processor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **composites.settings(kind))
        AutoModelForMultimodalLM.from_config(config, dtype=torch.float32).save_pretrained(folder / kind)
    (tokenizer or models.tokenizer()).save_pretrained(folder / kind)
    (folder / kind / "preprocessor_config.json").write_text(PROCESSOR)
    return folder / kind


@pytest.mark.parametrize("kind", composites.CONFIGS)
def test_what_no_text_reaches_is_frozen_and_all_is_saved(tmp_path: Path, kind: str) -> None:
    base = saved(tmp_path, kind)
    policy = load(str(base))
    (note,) = policy.notes
    assert "no text reaches" in note
    trained = {name for name, each in policy.model.named_parameters() if each.requires_grad}
    assert gradients(policy).keys() == trained, "each parameter that wants a gradient gets one, and no other"
    assert trained < dict(policy.model.named_parameters()).keys()
    plain = AutoModelForMultimodalLM.from_pretrained(base, dtype=torch.float32).eval()
    expected = [
        logits(plain, ((*prompt, *response),))[0, len(prompt) - 1 : -1].log_softmax(-1)[range(len(response)), response]
        for prompt, response in SEQUENCES
    ]
    ours = policy.log_probs(SEQUENCES, HOT)[0].detach()
    torch.testing.assert_close(ours, torch.cat(expected), rtol=0, atol=5e-6)
    policy.save(tmp_path / "saved")
    again = AutoModelForMultimodalLM.from_pretrained(tmp_path / "saved", dtype=torch.float32).state_dict()
    assert all(torch.equal(x, again[name]) for name, x in plain.state_dict().items())
    assert (tmp_path / "saved" / "preprocessor_config.json").read_text() == PROCESSOR


@pytest.mark.needs("peft")
@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", "mllama", "llama4"])
def test_an_adapter_sits_only_where_text_reaches(tmp_path: Path, kind: str) -> None:
    policy = load(str(saved(tmp_path, kind)), lora=Lora(rank=2))
    trained = {name for name, each in policy.model.named_parameters() if each.requires_grad}
    assert all(".lora_" in name for name in trained)
    assert gradients(policy).keys() == trained
    torch.manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    wanted = logits(policy.model)
    for merge in (True, False):
        policy.save(tmp_path / str(merge), merge=merge)
        opened = load(str(tmp_path / str(merge)))
        torch.testing.assert_close(logits(opened.model), wanted, rtol=0, atol=3e-6)
        assert opened.files == policy.files


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl", "qwen3_5", "llava", "qwen2_audio"])
def test_a_plan_knows_what_is_trained(tmp_path: Path, kind: str) -> None:
    base = saved(tmp_path, kind)
    wanted = [name for name, each in load(str(base)).model.named_parameters() if each.requires_grad]
    with imagined(AutoConfig.from_pretrained(base), "float32", None, None) as model:
        assert [name for name, each in model.named_parameters() if each.requires_grad] == wanted


@pytest.mark.parametrize("kind", ["gemma3", "qwen2_5_vl"])
def test_a_run_trains_the_text_and_leaves_the_rest_as_it_was(tmp_path: Path, kind: str) -> None:
    path = tiny.recipe(tmp_path)
    base = saved(tmp_path, kind, AutoTokenizer.from_pretrained(tmp_path / "tokenizer"))
    model = [f"model.path={base}", "model.config=null", "model.tokenizer=null"]
    recipe = upge.load(path, [*model, "train.steps=2", "optimizer.lr=0.01"])
    assert plan(recipe).count.trained < plan(recipe).count.parameters
    folder = train(recipe)
    assert [line["updates/made"] for line in lines(folder)] == [1, 1]
    before, after = (AutoModelForMultimodalLM.from_pretrained(each) for each in (base, folder / "model"))
    frozen = text_scope.unreached(before)
    for name, x in before.named_parameters():
        assert torch.equal(x, after.get_parameter(name)) == text_scope.within(name, frozen), name
    assert (folder / "model" / "preprocessor_config.json").is_file()


def test_a_prompt_that_sees_what_follows_is_refused(tmp_path: Path) -> None:
    assert "its output at a token depends on later tokens" in refusal(saved(tmp_path, "paligemma"))


def test_an_encoder_for_prompts_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    config = BartConfig(vocab_size=models.SIZE, d_model=16, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=16)
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert "bart has an encoder for its prompts" in refusal(tmp_path)


def test_a_model_that_refuses_text_alone_is_told_so() -> None:
    class Blind(nn.Module):
        def forward(self, **_: Any) -> Any:
            raise ValueError("You have to specify\npixel_values")

    model: Any = models.llama()
    with pytest.raises(ModelError, match=r"refuses text alone \(ValueError: You have to specify pixel_values\)$"):
        text_scope.unreached(model, Blind())


def test_text_reaches_all_of_a_text_model() -> None:
    for model in (models.llama(), models.gpt2(), models.gemma2()):
        assert text_scope.settle(model) == ()
        assert all(each.requires_grad for each in model.parameters())


def test_a_head_that_nobody_uses_is_found_wherever_it_lies() -> None:
    model = models.llama()
    model.register_module("spare", nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    model.model.layers[0].mlp.register_parameter("unused", nn.Parameter(torch.ones(3)))
    assert text_scope.settle(model) == ("model.layers.0.mlp.unused", "spare")
    model.requires_grad_(False)
    assert text_scope.unreached(model) == ("spare",), "of frozen ones only what isn't called is known"


def test_looking_leaves_no_trace() -> None:
    model = models.gpt2(attn_pdrop=0.5).train()
    before = torch.get_rng_state()
    text_scope.settle(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert all(each.grad is None for each in model.parameters())


@pytest.mark.parametrize("kind", ["qwen3_moe", "qwen2", "olmo2", "granite"])
def test_what_an_architectures_code_reads_is_an_argument_though_its_class_lists_none(kind: str) -> None:
    settings = {**tiny.LLAMA, "model_type": kind, "head_dim": 4, "num_key_value_heads": 2}
    assert configure(settings, models.tokenizer()).head_dim == 4
    with pytest.raises(ModelError, match="has no argument 'head_dims'; did you mean 'head_dim'"):
        configure({**tiny.LLAMA, "model_type": kind, "head_dims": 4}, models.tokenizer())
