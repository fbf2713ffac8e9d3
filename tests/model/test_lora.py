"""LoRA and quantized weights: gradients, saving, resuming, the reference."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support import tiny_models as models
from support.model_probes import GRPO, HOT, KL, SEQUENCES, SFT, gradients, lines, logits, passes, refusal
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

import upge
from upge.errors import InputError
from upge.model import ModelError, Policy, load, load_critic
from upge.recipe.schema import Lora
from upge.train.run import train

Run = Callable[..., Path]
LORA = "model.lora={rank: 2, alpha: 4}"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny Llama."""
    models.policy().save(tmp_path / "base")
    return tmp_path / "base"


@pytest.fixture
def exact(tmp_path: Path) -> Path:
    """A tiny GPT-2, exact in float64."""
    models.policy(models.gpt2()).save(tmp_path / "exact")
    return tmp_path / "exact"


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tiny recipe with overrides, in a folder of its own."""

    def start(name: str, *overrides: str, resume: bool = False, **blocks: Any) -> Path:
        recipe = upge.load(tiny.recipe(tmp_path, **blocks), [f"log.folder={tmp_path / name}", *overrides])
        return train(recipe, resume=tmp_path / name if resume else None)

    return start


# LoRA.


def adapted(path: Path, **settings: Any) -> Policy:
    """A policy with an adapter that has learnt something."""
    policy = load(str(path), lora=Lora(rank=2, alpha=6.0, **settings), dtype="float64")
    torch.manual_seed(0)
    for name, parameter in policy.model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.3)
    return policy


def by_hand(policy: Policy) -> Callable[[dict[str, Tensor]], Tensor]:
    """log π of SEQUENCES with W + (α/rank)·B·A computed here, on a plain GPT-2 (whose W is transposed)."""
    plain = models.gpt2().double()

    def log_probs(adapter: dict[str, Tensor]) -> Tensor:
        weights = dict(plain.named_parameters())
        for name in adapter:
            if name.endswith("lora_A.default.weight"):
                layer = name.removesuffix(".lora_A.default.weight")
                step = adapter[f"{layer}.lora_B.default.weight"] @ adapter[name]
                weights[f"{layer}.weight"] = weights[f"{layer}.weight"].detach() + 3.0 * step.T
        found = []
        for prompt, response in SEQUENCES:
            tokens = torch.tensor([[*prompt, *response]])
            distribution = functional_call(plain, weights, (tokens,)).logits[0].log_softmax(-1)
            found += [distribution[len(prompt) + t - 1, token] for t, token in enumerate(response)]
        return torch.stack(found)

    return log_probs


@pytest.mark.needs("peft")
def test_an_adapters_gradient_is_the_one_by_hand(exact: Path) -> None:
    policy = adapted(exact)
    leaves = {name: x for name, x in policy.model.named_parameters() if x.requires_grad}
    assert len(leaves) == 2 * 2 * 4  # A and B of the four matrices of both layers, and nothing else
    ours = policy.log_probs(SEQUENCES, HOT)[0]
    theirs = by_hand(policy)(leaves)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    mine = torch.autograd.grad(ours.sum(), list(leaves.values()))
    expected = torch.autograd.grad(theirs.sum(), list(leaves.values()))
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-10)


@pytest.mark.needs("peft")
def test_a_new_adapter_changes_nothing_and_depends_on_the_seed_alone(saved: Path) -> None:
    torch.manual_seed(1)
    first = load(str(saved), lora=Lora(), seed=3)
    torch.manual_seed(2)
    second, other = (load(str(saved), lora=Lora(), seed=seed) for seed in (3, 4))
    assert torch.equal(logits(first.model), logits(load(str(saved)).model))
    ours, same, differs = (each.model.get_adapter_state_dict() for each in (first, second, other))
    assert all(torch.equal(ours[name], same[name]) for name in ours)
    assert not all(torch.equal(ours[name], differs[name]) for name in ours)


@pytest.mark.needs("peft")
def test_an_adapter_is_float32_on_bfloat16_weights(saved: Path) -> None:
    policy = load(str(saved), lora=Lora(), dtype="bfloat16")
    assert {(x.dtype, x.requires_grad) for x in policy.model.parameters()} == {
        (torch.bfloat16, False),
        (torch.float32, True),
    }


@pytest.mark.needs("peft")
def test_a_merged_model_says_in_plain_transformers_what_the_policy_says(exact: Path, tmp_path: Path) -> None:
    policy = adapted(exact)
    before = logits(policy.model)
    policy.save(tmp_path / "merged")
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "merged", dtype=torch.float64)
    assert not (tmp_path / "merged" / "adapter_config.json").exists()
    torch.testing.assert_close(logits(theirs), before, rtol=0, atol=1e-10)
    assert torch.equal(logits(policy.model), before), "saving changes nothing"
    assert models.beside(policy).open(None).policy is policy, "and the adapter is still there"


@pytest.mark.needs("peft")
def test_an_adapter_alone_opens_in_plain_peft_and_here(exact: Path, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    policy = adapted(exact)
    policy.save(tmp_path / "alone", merge=False)
    assert not (tmp_path / "alone" / "model.safetensors").exists()
    theirs = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "alone", dtype=torch.float64)
    torch.testing.assert_close(logits(theirs), logits(policy.model), rtol=0, atol=1e-10)
    opened = load(str(tmp_path / "alone"), dtype="float64")
    torch.testing.assert_close(logits(opened.model), logits(policy.model), rtol=0, atol=1e-10)
    assert all(parameter.requires_grad for parameter in opened.model.parameters())
    assert not any("lora" in name for name, _ in opened.model.named_parameters())


@pytest.mark.needs("peft")
def test_the_reference_is_the_policy_with_its_adapter_off(exact: Path) -> None:
    policy = adapted(exact)
    reference = models.beside(policy).open(None)
    assert reference.policy is policy
    base = load(str(exact), dtype="float64").log_probs(SEQUENCES, HOT)[0]
    torch.testing.assert_close(reference.log_probs(SEQUENCES, HOT), base, rtol=0, atol=1e-10)
    assert not torch.allclose(policy.log_probs(SEQUENCES, HOT)[0], base)
    assert sum(parameter.requires_grad for parameter in policy.model.parameters()) == 16


@pytest.mark.needs("peft")
def test_a_critic_starts_from_the_body_without_the_adapter(saved: Path) -> None:
    critic = load_critic(load(str(saved), lora=Lora()))
    body = models.llama().base_model.state_dict()
    assert all(torch.equal(x, body[name]) for name, x in critic.model.base_model.state_dict().items())


@pytest.mark.needs("peft")
def test_gradient_checkpointing_goes_with_an_adapter(exact: Path) -> None:
    plain = adapted(exact)
    thrifty = Policy(copy.deepcopy(plain.model), plain.tokenizer, recompute=True)
    ours, theirs = gradients(thrifty), gradients(plain)
    assert len(ours) == 16
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert passes(thrifty) == 2 * passes(plain)


@pytest.mark.needs("peft")
def test_a_run_trains_the_adapter_and_leaves_a_whole_model(run: Run) -> None:
    start, trained = (
        run(name, LORA, f"train.steps={steps}", "optimizer.lr=0.05") for name, steps in (("a", 0), ("b", 5))
    )
    before, after = (load_file(folder / "model" / "model.safetensors") for folder in (start, trained))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if name.endswith("proj.weight")}
    assert AutoModelForCausalLM.from_pretrained(trained / "model").config.model_type == "llama"


@pytest.mark.needs("peft")
def test_the_penalty_of_a_run_is_to_the_model_without_the_adapter(run: Run) -> None:
    logged = lines(run("kl", LORA, "optimizer.lr=0.05", estimator={"terms": {"rl": GRPO, "kl": KL}}))
    assert logged[0]["kl/advantage"] == pytest.approx(0, abs=1e-6)
    assert logged[-1]["kl/advantage"] > 1e-4


@pytest.mark.needs("peft")
def test_a_resumed_adapter_is_the_one_that_never_stopped(run: Run) -> None:
    settings = (LORA, "train.save_every=2", "train.minibatches=2", "optimizer.lr=0.05", "eval.splits=[]")
    blocks = {"estimator": {"terms": {"sft": SFT, "rl": GRPO, "kl": KL}}}
    through = run("through", *settings, **blocks)
    run("stopped", *settings, "train.steps=3", **blocks)
    stopped = run("stopped", *settings, resume=True, **blocks)
    adapter = Path("checkpoints", "step-000004", "model")
    files = ("metrics.jsonl", "completions.jsonl", "model/model.safetensors", adapter / "adapter_model.safetensors")
    for name in (*files, adapter / "adapter_config.json"):
        assert (through / name).read_bytes() == (stopped / name).read_bytes(), name
    assert not list((through / adapter).glob("model*.safetensors")), "checkpoints hold the adapter alone"
    assert all("lora" in name for name in load_file(through / adapter / "adapter_model.safetensors"))


@pytest.mark.heavy
@pytest.mark.needs("peft")
def test_two_processes_train_the_adapter_that_one_does(run: Run, tmp_path: Path) -> None:
    """The adapter goes off and on again for the reference, under data parallelism too."""
    model = {"lora": {"rank": 2, "alpha": 4.0}, "gradient_checkpointing": True}
    blocks = {"model": model, "estimator": {"terms": {"rl": GRPO, "kl": KL}}, "optimizer": {"lr": 0.05}}
    one = run("one", **blocks)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
    upge_run = [str(Path(sys.executable).parent / "upge"), "run", str(tmp_path / "recipe.yaml")]
    command = [*torchrun, *upge_run, f"log.folder={tmp_path / 'two'}"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    ours, theirs = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("one", "two"))
    assert max(float((ours[name] - theirs[name]).abs().max()) for name in ours) < 1e-4
    assert lines(one)[-1]["kl/advantage"] == pytest.approx(lines(tmp_path / "two")[-1]["kl/advantage"], rel=1e-3)


@pytest.mark.needs("peft")
def test_an_adapter_of_another_shape_is_not_taken_up(run: Run) -> None:
    folder = run("stopped", LORA, "train.save_every=2", "train.steps=2")
    narrow = "model.lora={rank: 2, alpha: 4, targets: [q_proj]}"
    with pytest.raises(InputError, match=r"model\.lora\.targets: all-linear there"):
        run("stopped", narrow, "train.save_every=2", "train.steps=4", resume=True)
    said = (folder / "recipe.yaml").read_text().replace("targets: all-linear", "targets:\n    - q_proj")
    (folder / "recipe.yaml").write_text(said)  # and if the folder itself says so
    with pytest.raises(ModelError, match="another adapter's weights"):
        run("stopped", narrow, "train.save_every=2", "train.steps=4", resume=True)


@pytest.mark.needs("peft")
def test_a_run_can_leave_its_adapter_alone(run: Run, saved: Path) -> None:
    model = {"path": str(saved), "config": None, "tokenizer": None, "lora": {"rank": 2, "save": "adapter"}}
    folder = run("adapter", "optimizer.lr=0.05", model=model)
    assert not (folder / "model" / "model.safetensors").exists()
    merged = run("merged", "optimizer.lr=0.05", "model.lora.save=merged", model=model)
    torch.testing.assert_close(logits(load(str(folder)).model), logits(load(str(merged)).model))


@pytest.mark.needs("peft")
def test_layers_that_are_not_there_are_refused(saved: Path) -> None:
    assert "no_proj" in refusal(saved, lora=Lora(targets=("no_proj",)))


def test_without_peft_the_command_that_helps_is_named(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "pip install 'upge[peft]'" in refusal(saved, lora=Lora())


def test_quantized_weights_need_bitsandbytes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert "pip install 'upge[qlora]'" in refusal(saved, lora=Lora(quantize="nf4", save="adapter"))


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A Llama wide enough for blocks of 64 quantized weights."""
    models.policy(models.llama(hidden_size=128, intermediate_size=128)).save(tmp_path / "wide")
    return tmp_path / "wide"


@pytest.mark.needs("peft", "bitsandbytes")
def test_an_adapter_is_trained_on_weights_in_8_bits(run: Run, wide: Path) -> None:
    """On the CPU, which bitsandbytes can do too; nothing here says how it is on a GPU."""
    model = {"path": str(wide), "config": None, "tokenizer": None}
    model |= {"lora": {"rank": 2, "save": "adapter", "quantize": "int8"}}
    folder = run("int8", "optimizer.lr=0.01", model=model, estimator={"terms": {"rl": GRPO, "kl": KL, "sft": SFT}})
    assert lines(folder)[0]["kl/advantage"] == pytest.approx(0, abs=1e-6)
    assert lines(folder)[-1]["kl/advantage"] > 1e-4
    assert not (folder / "model" / "model.safetensors").exists()
    assert all(x.dtype == torch.float32 for x in load_file(folder / "model" / "adapter_model.safetensors").values())
    assert not torch.allclose(logits(load(str(folder)).model), logits(load(str(wide)).model), atol=1e-3)


@pytest.mark.needs("bitsandbytes")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_4_bits_without_a_gpu_are_refused(wide: Path) -> None:
    assert "nf4 needs a CUDA GPU" in refusal(wide, lora=Lora(quantize="nf4", save="adapter"))


@pytest.fixture
def four_bits(wide: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Policy]:
    """Opens the wide model in 4 bits as on a GPU, but on the CPU, with those of its kernels that have a gradient."""

    def opened(kind: str) -> Policy:
        import bitsandbytes

        with monkeypatch.context() as patch:
            patch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", lambda: False)
            patch.setattr(torch.cuda, "is_available", lambda: True)
            patch.setattr(torch.cuda, "current_device", lambda: "cpu")
            return load(str(wide), lora=Lora(rank=2, quantize=kind, save="adapter"))  # type: ignore[arg-type]

    return opened


@pytest.mark.needs("peft", "bitsandbytes")
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_an_adapters_gradient_is_that_on_the_unpacked_weights(
    four_bits: Callable[[str], Policy], wide: Path, kind: str
) -> None:
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    packed, plain = four_bits(kind), load(str(wide), lora=Lora(rank=2))
    for name, module in packed.model.named_modules():
        if isinstance(module, Linear4bit):
            whole = dequantize_4bit(module.weight.data, module.weight.quant_state)
            plain.model.get_submodule(name).weight.data.copy_(whole)
    for each in (packed, plain):
        torch.manual_seed(0)
        for name, parameter in each.model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
    with torch.no_grad():
        before = packed.log_probs(SEQUENCES, HOT)[0]
    ours, theirs = gradients(packed), gradients(plain)
    assert len(ours) == len(theirs) == 2 * 7 * 2
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(packed.log_probs(SEQUENCES, HOT)[0], before, rtol=0, atol=1e-5)


@pytest.mark.needs("peft", "bitsandbytes")
def test_quantized_weights_are_packed_frozen_and_never_copied(
    four_bits: Callable[[str], Policy], tmp_path: Path
) -> None:
    policy = four_bits("nf4")
    assert {x.requires_grad for x in policy.model.parameters() if x.dtype == torch.uint8} == {False}
    assert {x.dtype for x in policy.model.parameters() if x.requires_grad} == {torch.float32}
    assert models.beside(policy).open(None).policy is policy
    with pytest.raises(ModelError, match="quantized"):
        policy.save(tmp_path / "merged")
    with pytest.raises(ModelError, match=r"set critic\.path"):
        load_critic(policy)
    policy.save(tmp_path / "alone", merge=False)
    torch.testing.assert_close(logits(load(str(tmp_path / "alone")).model), logits(load(str(tmp_path / "wide")).model))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("model.lora={dropout: 0.1}", "must be 0"),
        ("model.lora={targets: []}", "nothing would be trained"),
        ("model.lora={rank: 0}", "rank"),
        ("model.lora={save: adapter}", "random weights fits no model"),
        ("model.lora={quantize: nf4}", "add 'save: adapter'"),
        ("model.lora={quantize: nf4, save: adapter}", "random weights fits no model"),
        ("model.lora={ranks: 3}", "rank"),
        ("model.overrides={rope_theta: 3}", "nothing to override"),
    ],
)
def test_blocks_that_can_not_be_are_refused(tmp_path: Path, changes: str, message: str) -> None:
    with pytest.raises(upge.RecipeError, match=message):
        upge.load(tiny.recipe(tmp_path), [changes])
