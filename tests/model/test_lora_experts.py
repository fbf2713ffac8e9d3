"""LoRA on mixtures of experts, whose experts are one tensor: merged, alone, resumed, and told where it is absent."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support import tiny_models as models
from support.model_probes import HOT, SEQUENCES, gradients, logits, refusal
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

import upge
from upge.model import Critic, ModelError, Policy, load, load_critic, lora, shards
from upge.recipe.schema import Lora
from upge.runs.reader import checkpoints
from upge.train import checkpoint
from upge.train.run import train

WIDTHS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = {**WIDTHS, "num_key_value_heads": 2, "num_experts_per_tok": 2, "max_position_embeddings": 128}
EXPERTS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"num_experts": 4, "moe_intermediate_size": 24, "head_dim": 8},
    "mixtral": {"num_local_experts": 4},
    "olmoe": {"num_experts": 4},
    "deepseek_v3": {
        **{"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "moe_intermediate_size": 24, "q_lora_rank": 16},
        **{"kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
        **{"first_k_dense_replace": 1, "num_key_value_heads": 4},
    },
}
"""Architectures whose experts get adapters by default."""
BARE: dict[str, dict[str, Any]] = {
    "granitemoe": {"num_local_experts": 4},
    "gpt_oss": {"num_local_experts": 4, "head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
}
"""Those whose experts don't."""


def saved(folder: Path, kind: str) -> Path:
    """A tiny model of an architecture."""
    settings = {"vocab_size": models.SIZE, "eos_token_id": 1, "bos_token_id": 0, "pad_token_id": None}
    config = AutoConfig.for_model(kind, **{**COMMON, **settings, **{**EXPERTS, **BARE}[kind]})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models.policy(AutoModelForCausalLM.from_config(config, dtype=torch.float32)).save(folder / "base")
    return folder / "base"


def adapted(path: Path, **settings: Any) -> Policy:
    """A policy with an adapter that has learnt something."""
    policy = load(str(path), lora=Lora(rank=2, alpha=4.0, **settings))
    torch.manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return policy


@pytest.mark.needs("peft")
@pytest.mark.parametrize("kind", EXPERTS)
def test_a_merged_mixture_says_what_the_policy_said(tmp_path: Path, kind: str) -> None:
    base = saved(tmp_path, kind)
    policy = adapted(base)
    names = {name for name, each in policy.model.named_parameters() if each.requires_grad}
    assert any(".experts." in name for name in names)
    wanted = logits(policy.model)
    assert float((logits(load(str(base)).model) - wanted).abs().max()) > 1e-2
    policy.save(tmp_path / "merged")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    torch.testing.assert_close(logits(theirs), wanted, rtol=0, atol=3e-6)
    assert torch.equal(logits(policy.model), wanted), "saving changes nothing"


@pytest.mark.needs("peft")
@pytest.mark.parametrize("kind", ["qwen3_moe", "deepseek_v3"])
def test_an_adapter_on_experts_opens_in_plain_peft_and_here_and_goes_on(tmp_path: Path, kind: str) -> None:
    from peft import AutoPeftModelForCausalLM

    base = saved(tmp_path, kind)
    policy = adapted(base)
    wanted, file = logits(policy.model), tmp_path / "alone" / "adapter_model.safetensors"
    policy.save(tmp_path / "alone", merge=False)
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "alone", dtype=torch.float32)
    torch.testing.assert_close(logits(theirs), wanted, rtol=0, atol=3e-6)
    torch.testing.assert_close(logits(load(str(tmp_path / "alone")).model), wanted, rtol=0, atol=3e-6)
    resumed = load(str(base), lora=Lora(rank=2, alpha=4.0))
    lora.restore(resumed.model, load_file(file))
    assert torch.equal(logits(resumed.model), wanted)
    again = load(str(tmp_path / "alone"), lora=Lora(rank=2, alpha=4.0))
    again.save(tmp_path / "on top")
    torch.testing.assert_close(logits(load(str(tmp_path / "on top")).model), wanted, rtol=0, atol=6e-6)


@pytest.mark.needs("peft")
def test_reference_critic_and_recomputing_go_with_adapters_on_experts(tmp_path: Path) -> None:
    base = saved(tmp_path, "mixtral")
    policy = adapted(base)
    plain = load(str(base))
    torch.testing.assert_close(
        models.beside(policy).open(None).log_probs(SEQUENCES, HOT), plain.log_probs(SEQUENCES, HOT)[0].detach()
    )
    body = plain.model.base_model.state_dict()
    assert all(torch.equal(x, body[name]) for name, x in load_critic(policy).model.base_model.state_dict().items())
    ours, theirs = gradients(Policy(policy.model, policy.tokenizer, recompute=True)), gradients(policy)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.needs("peft")
@pytest.mark.parametrize("kind", BARE)
def test_experts_without_an_adapter_are_told_and_get_one_where_they_are_named(tmp_path: Path, kind: str) -> None:
    base = saved(tmp_path, kind)
    (note,) = load(str(base), lora=Lora(rank=2)).notes
    assert "experts.gate_up_proj" in note
    assert "of the weights" in note
    assert "names them: down_proj, gate_up_proj" in note
    policy = adapted(base, targets=("q_proj", "gate_up_proj", "down_proj"))
    assert policy.notes == ()
    trained = [name for name, each in policy.model.named_parameters() if each.requires_grad]
    assert len(trained) == 2 * 3 * 2
    wanted = logits(policy.model)
    for merge in (True, False):
        policy.save(tmp_path / str(merge), merge=merge)
        torch.testing.assert_close(logits(load(str(tmp_path / str(merge))).model), wanted, rtol=0, atol=3e-6)


@pytest.mark.needs("peft")
def test_experts_alone_can_be_named(tmp_path: Path) -> None:
    base = saved(tmp_path, "granitemoe")
    policy = adapted(base, targets=("experts.down_proj",))
    assert {name.split(".lora_")[0] for name, each in policy.model.named_parameters() if each.requires_grad} == {
        f"model.layers.{layer}.block_sparse_moe.experts" for layer in (0, 1)
    }
    wanted = logits(policy.model)
    lora.merged_outline(policy.model)
    policy.save(tmp_path / "merged")
    torch.testing.assert_close(logits(load(str(tmp_path / "merged")).model), wanted, rtol=0, atol=3e-6)


@pytest.mark.needs("peft")
def test_shared_experts_that_peft_cannot_name_are_told(tmp_path: Path) -> None:
    (note,) = load(str(saved(tmp_path, "deepseek_v3")), lora=Lora(rank=2)).notes
    assert "shared_experts.gate_proj" in note
    assert "names them" not in note, "naming them would help nobody"


@pytest.mark.needs("peft")
def test_a_dense_model_has_nothing_to_tell_and_peft_nothing_to_warn_of(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    models.policy().save(tmp_path / "base")
    policy = load(str(tmp_path / "base"), lora=Lora(rank=2))
    policy.save(tmp_path / "merged")
    assert policy.notes == ()
    adapted(saved(tmp_path, "mixtral")).save(tmp_path / "alone", merge=False)
    load(str(tmp_path / "alone"))
    assert not [each for each in recwarn if "peft" in str(each.message) or "pattern" in str(each.message)]


@pytest.mark.needs("peft")
def test_another_warning_of_pefts_is_one_line_with_its_place() -> None:
    @lora.warned("model.lora")
    def warn() -> None:
        for _ in range(2):
            warnings.warn("two\n lines", stacklevel=1)
        warnings.warn("The following rank_pattern keys did not match any", stacklevel=1)

    with pytest.warns(UserWarning, match=r"^model\.lora: peft warns: two lines$") as caught:
        warn()
    assert len(caught) == 1


# A run.

MIXTURE = tiny.LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_key_value_heads": 2}
LORA = {"lora": {"rank": 2, "alpha": 4.0}}


def recipe(folder: Path, *overrides: str, config: dict[str, Any] = MIXTURE) -> upge.Recipe:
    path = tiny.recipe(folder, config, model=LORA)
    return upge.load(path, ["train.steps=2", "eval.splits=[]", "optimizer.lr=0.05", *overrides])


@pytest.mark.needs("peft")
def test_a_run_on_a_mixture_leaves_a_whole_model_and_resumes(tmp_path: Path) -> None:
    through = train(recipe(tmp_path, "train.save_every=1"))
    (tmp_path / "half").mkdir()
    stopped = train(recipe(tmp_path, "train.save_every=1", "train.steps=1", f"log.folder={tmp_path / 'half'}"))
    resumed = train(recipe(tmp_path, "train.save_every=1", f"log.folder={tmp_path / 'half'}"), resume=stopped)
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (through, resumed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)
    assert load(str(through)).model.config.model_type == "mixtral"
    assert not list(through.glob("trial*")), "what was tried at the start is gone"


@pytest.mark.needs("peft")
def test_what_cannot_be_merged_ends_a_run_before_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(lora, "merge", broken)
    for size in (shards.SMALL, 0):
        monkeypatch.setattr(shards, "SMALL", size)
        with pytest.raises(ModelError, match=r"can't be saved \(RecursionError.*adapter avoids the merge"):
            train(recipe(tmp_path))
    assert not list(tmp_path.rglob("completions.jsonl"))


@pytest.mark.needs("peft")
@pytest.mark.parametrize("merge", [True, False])
def test_a_large_model_is_tried_without_most_of_its_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    monkeypatch.setattr(shards, "SMALL", 0)
    policy = adapted(saved(tmp_path, "mixtral"))
    policy.try_saving(tmp_path / "tried", merge=merge)
    (file,) = (tmp_path / "tried").glob("*.safetensors")
    names = set(load_file(file))
    assert len(names) == (1 if merge else sum(each.requires_grad for each in policy.model.parameters()))
    plain = load(str(tmp_path / "base"))
    plain.try_saving(tmp_path / "plain")
    assert len(load_file(tmp_path / "plain" / "model.safetensors")) == 1


def test_trying_to_save_draws_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_rng_state()
    for size in (shards.SMALL, 0):
        monkeypatch.setattr(shards, "SMALL", size)
        models.policy().try_saving(tmp_path / str(size))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_cannot_be_written_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no conversion back")

    monkeypatch.setattr(Policy, "_write", broken)
    plain = upge.load(tiny.recipe(tmp_path), ["eval.splits=[]"])
    with pytest.raises(ModelError, match=r"can't be saved \(ValueError: no conversion back\), so it isn't begun$"):
        train(plain)
    assert checkpoints(tmp_path / "run" / "tiny") == []


def test_a_critic_that_cannot_be_written_is_found_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise ValueError("no conversion back")

    monkeypatch.setattr(Critic, "save", broken)
    critic = load_critic(models.policy())
    learner: Any = SimpleNamespace(policy=models.policy(), critic_model=lambda: critic)
    with pytest.raises(ModelError, match=r"^critic: what .* can't be saved \(ValueError: no conversion back\), so it"):
        checkpoint.rehearse(tmp_path, learner, merge=True)
    assert not list(tmp_path.iterdir())


def test_a_large_critic_is_tried_without_most_of_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    critic = load_critic(models.policy())
    critic.try_saving(tmp_path / "small")
    assert len(load_file(tmp_path / "small" / "model.safetensors")) > 1
    monkeypatch.setattr(shards, "SMALL", 0)
    critic.try_saving(tmp_path / "large")
    assert len(load_file(tmp_path / "large" / "model.safetensors")) == 1


@pytest.mark.needs("peft")
def test_targets_that_end_no_name_are_still_refused(tmp_path: Path) -> None:
    assert "no_proj" in refusal(saved(tmp_path, "granitemoe"), lora=Lora(targets=("no_proj",)))
