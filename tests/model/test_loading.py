"""Opening a policy from wherever it is, and saving it: what is refused, and with which words."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import torch
from support import tiny_models as models
from support.tiny_models import PAIRS, TEMPERATURES
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from upge import Problem
from upge.model import ModelError, Policy, load

PROBLEM = Problem(id="p", prompt="1+1", answer="2")


def test_stop_tokens_come_from_everywhere_once() -> None:
    model = models.llama(eos_token_id=[4, 1])
    model.generation_config.eos_token_id = [3, 4]
    assert models.policy(model).stop_ids == (1, 4, 3)


def test_a_tokenizer_without_pad_token_keeps_its_size() -> None:
    policy = models.policy()
    assert policy.pad_id == policy.tokenizer.eos_token_id == 1
    assert len(policy.tokenizer) == models.SIZE


def test_an_added_token_without_embedding_is_no_pad_token() -> None:
    tokenizer = models.tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == models.SIZE
    assert Policy(models.llama(), tokenizer).pad_id == 0


def test_dropout_is_off_and_parameters_train() -> None:
    policy = models.policy(models.gpt2(attn_pdrop=0.5, resid_pdrop=0.5).train())
    once, again = (policy.log_probs(PAIRS, TEMPERATURES)[0] for _ in range(2))
    assert torch.equal(once, again)
    assert once.requires_grad


def test_saved_and_opened_again(tmp_path: Path) -> None:
    policy = models.policy(None, models.CHAT)
    policy.model.generation_config = GenerationConfig(do_sample=False, top_p=0.5, eos_token_id=[1, 3])
    policy.save(tmp_path / "run" / "model")
    names = {file.name for file in (tmp_path / "run" / "model").iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"} <= names
    again = load(str(tmp_path / "run"))  # a run folder
    assert again.vocabulary_fingerprint() == policy.vocabulary_fingerprint()
    assert again.stop_ids == (1, 3)
    assert torch.equal(again.log_probs(PAIRS, TEMPERATURES)[0], policy.log_probs(PAIRS, TEMPERATURES)[0])
    assert again.templater().prompt(PROBLEM) == policy.templater().prompt(PROBLEM)
    assert policy.model.generation_config.top_p == 0.5, "saving changes nothing"
    there = str(tmp_path / "run" / "model")
    theirs = AutoModelForCausalLM.from_pretrained(there)
    assert torch.equal(theirs(torch.tensor([[5, 6]])).logits, policy.model(torch.tensor([[5, 6]])).logits)
    assert len(AutoTokenizer.from_pretrained(there)) == models.SIZE


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    models.policy().save(folder)
    return folder


TINY = {
    "model_type": "llama", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip


def test_random_weights_follow_from_the_seed_alone(saved: Path) -> None:
    def weights(seed: int, dtype: str = "float32") -> list[Tensor]:
        torch.rand(3)
        return list(load(config=dict(TINY), tokenizer=str(saved), seed=seed, dtype=dtype).model.parameters())

    state = torch.get_rng_state()
    once = weights(3)
    torch.set_rng_state(state)
    torch.rand(3)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    assert all(map(torch.equal, once, weights(3)))
    assert torch.equal(torch.rand(1), expected), "the global generator went on as if nothing had been drawn"
    assert not all(map(torch.equal, once, weights(4)))
    assert all(torch.equal(a.double(), b) for a, b in zip(once, weights(3, "float64"), strict=True))


def test_random_weights_fit_the_tokenizer(saved: Path) -> None:
    policy = load(config=dict(TINY), tokenizer=str(saved))
    config = policy.model.config
    assert (config.vocab_size, config.eos_token_id, config.bos_token_id) == (models.SIZE, 1, 0)
    assert policy.context_length == config.max_position_embeddings
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}


def test_the_dtype_is_the_one_asked_for(saved: Path) -> None:
    for dtype in ("float32", "bfloat16", "float64"):
        assert {str(p.dtype) for p in load(str(saved), dtype=dtype).model.parameters()} == {f"torch.{dtype}"}


def test_a_folder_inside_a_package(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somelab"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "base").symlink_to(saved)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert load("somelab:base").stop_ids == (1,)
    with pytest.raises(ModelError, match=r"did you mean .*base"):
        load("somelab:bse")
    with pytest.raises(ModelError, match="no package 'nolab'"):
        load("nolab:base")


def refusal(path: object = None, **given: object) -> str:
    with pytest.raises(ModelError) as caught:
        load(None if path is None else str(path), **given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_refusals_are_one_line_that_says_what_would_be_right(saved: Path, tmp_path: Path) -> None:
    assert "either a path" in refusal()
    assert "either a path" in refusal(saved, config={})
    assert "give a folder or Hub id" in refusal(config=dict(TINY))
    assert "none of float32" in refusal(saved, dtype="float16")
    assert "model_type" in refusal(config={}, tokenizer=str(saved))
    assert "did you mean 'hidden_size'" in refusal(config=TINY | {"hidden_sise": 3}, tokenizer=str(saved))
    assert "llamma" in refusal(config={"model_type": "llamma"}, tokenizer=str(saved))
    assert "hidden_size" in refusal(config=TINY | {"hidden_size": "x"}, tokenizer=str(saved))
    assert "ids go up to" in refusal(config=TINY | {"vocab_size": 5}, tokenizer=str(saved))
    assert "no such folder" in refusal(tmp_path / "none")
    assert f"did you mean {saved}?" in refusal(f"{saved}s")
    assert "no config.json" in refusal(tmp_path)
    assert "give its folder" in refusal(saved / "config.json")
    assert "no_such_attention" in refusal(saved, attention="no_such_attention")


def test_folders_that_hold_something_else(saved: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").touch()
    assert "merge" in refusal(tmp_path, tokenizer=str(saved))
    (tmp_path / "adapter_config.json").unlink()
    (tmp_path / "model.gguf").write_text("GGUF")
    assert "has a GGUF file; name that" in refusal(tmp_path, tokenizer=str(saved))
    assert "model.gguf" in refusal(tmp_path / "model.gguf", tokenizer=str(saved))


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    models.gpt2().save_pretrained(tmp_path)  # for which transformers would make up an empty one
    assert "set model.tokenizer" in refusal(tmp_path)


def test_a_folder_that_lacks_weights(saved: Path, tmp_path: Path) -> None:
    model = models.llama()
    model.model.save_pretrained(tmp_path)
    assert "lacks weights" in refusal(tmp_path, tokenizer=str(saved))
