"""The same gradient, whatever the number of processes: data parallelism over gloo, and models divided over ranks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import ranks, tiny
from support.process_outcomes import (
    BOUNDS,
    Done,
    agree,
    cases,
    forked,
    furthest,
    metrics,
    parameters,
    reached_whole,
    trained,
)
from torch import nn
from transformers import AutoModelForCausalLM

import upge
from upge.distributed import accelerator
from upge.errors import InputError
from upge.model import shards
from upge.rollouts.batching import Load, dealt, portions, tokens_of
from upge.train.run import train

QUANTIZED = "model={path: 'upge_parts:data/lab/base', config: null, lora: {quantize: nf4, save: adapter}}"


@pytest.fixture(scope="session")
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """What so many processes have left, of all settings where a heavy test is among those that run."""
    here = [item for item in request.session.items if item.path == Path(__file__)]
    heavy = any(item.get_closest_marker("heavy") for item in here)
    return forked("ranks.py", tmp_path_factory, "all" if heavy else "few")


two_and_three = pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.heavy)])


@pytest.mark.parametrize("setting", cases(ranks.WHOLE, ranks.FEW))
@two_and_three
def test_processes_learn_what_one_does(done: Done, processes: int, setting: ranks.Setting) -> None:
    agree(done(1), done(processes), setting)


@pytest.mark.parametrize("setting", cases([each for each in ranks.WHOLE if each[1] == "all"], ranks.FEW))
def test_so_do_micro_batches_of_any_size(done: Done, setting: ranks.Setting) -> None:
    method, _, kind = setting
    single, three, whole = (parameters(done(1), method, pieces, kind) for pieces in ranks.PIECES)
    assert furthest(single, three) <= BOUNDS[kind]
    assert furthest(single, whole) <= BOUNDS[kind]


@pytest.mark.parametrize("setting", cases(ranks.DIVIDED, ranks.FEW_DIVIDED))
def test_so_do_models_divided_over_ranks(done: Done, setting: ranks.Setting) -> None:
    agree(done(1), done(2), setting, "divided")


@pytest.mark.parametrize(
    "setting", cases([each for each in ranks.DIVIDED if each[0] not in ("sft", "grpo")], ranks.FEW_BY_ACCELERATE)
)
def test_so_do_models_that_accelerate_divides(done: Done, setting: ranks.Setting) -> None:
    agree(done(1), done(2), setting, "accelerate")


def test_so_do_divided_models_that_do_more_to_their_logits(done: Done) -> None:
    agree(done(2), done(2), ("scaled", "float32"), "divided")


@two_and_three
@pytest.mark.parametrize("setting", [("hpt", "composite"), ("spare", "float64")], ids="-".join)
def test_what_no_text_reaches_keeps_nobody_waiting(done: Done, processes: int, setting: tuple[str, str]) -> None:
    agree(done(1), done(processes), setting)


def test_nor_where_models_are_divided(done: Done) -> None:
    agree(done(1), done(2), ("hpt", "composite"), "divided")


@pytest.mark.parametrize("setting", cases([each for each in ranks.DIVIDED if each[2] == "float64"], ranks.FEW))
def test_there_was_something_to_learn(done: Done, setting: ranks.Setting) -> None:
    made = [line["updates/made"] for line in metrics(done(1), *setting)]
    assert made[0] == (2 if setting[0] == "sft" else 4)
    assert made[3] == 0  # the rollout batch without a prompt
    assert made[4] > 0


def test_ratios_and_kl_were_something_to_learn_from(done: Done) -> None:
    ratios = [line.get("rl/ratio", 1.0) for line in metrics(done(1), "hpt", "three", "float64")]
    assert any(abs(ratio - 1) > 1e-4 for ratio in ratios)
    assert metrics(done(1), "kl", "three", "float64")[2]["kl/advantage"] > 0


@pytest.mark.parametrize("world", [2, 3])
def test_the_rollout_batches_leave_ranks_with_one_kind_or_nothing(world: int) -> None:
    kinds = set()
    for batch in ranks.rollout_batches():
        tokens = {
            group: tokens_of([each for each in batch if each.group == group], None)
            for group in dict.fromkeys(each.group for each in batch)
        }
        owner = dealt([Load(group, group % world, tokens[group]) for group in tokens], world, 2)
        for step in portions(torch.tensor([each.group for each in batch], dtype=torch.long), 2):
            rows = [each for each, chosen in zip(batch, step.tolist(), strict=True) if chosen]
            kinds |= {
                frozenset(each.demonstration for each in rows if owner[each.group] == rank) for rank in range(world)
            }
    assert {frozenset(), frozenset({False}), frozenset({True})} <= kinds


@pytest.mark.parametrize("why", ["equal rewards", "masked"])
def test_what_there_is_to_compute_is_spread_evenly(done: Done, why: str) -> None:
    first, second = json.loads((done(2) / "tokens.json").read_text())[why]
    assert first > 0
    assert first == pytest.approx(second, rel=0.1), "as they were sampled, the first rank would have all of it"


# Data and rollouts.


def completions(folder: Path) -> dict[tuple[Any, ...], Any]:
    """Tokens by what they are keyed by; each once."""
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    found = {(line["stream"], line["step"], line["problem"], line["sample"]): line["tokens"] for line in lines}
    assert len(found) == len(lines)
    return found


@two_and_three
def test_processes_share_the_rollouts_of_one_without_overlap(done: Done, processes: int) -> None:
    one, several = completions(done(1) / "sampled"), completions(done(processes) / "sampled")
    assert one == several
    assert sum(stream == "train" for stream, *_ in one) == 4 * 8 * 6


def test_an_optimizer_step_has_the_same_prompts_whatever_the_number_of_ranks() -> None:
    everywhere = torch.arange(8)
    for count in (1, 2, 3, 5):
        whole = [everywhere[rows].tolist() for rows in portions(everywhere, count)]
        for world in (2, 3):
            shares = [everywhere[rank::world] for rank in range(world)]
            parts = [[own[rows] for rows in portions(own, count, among=everywhere)] for own in shares]
            assert [sorted(torch.cat(step).tolist()) for step in zip(*parts, strict=True)] == whole


# Runs with divided models.


@pytest.mark.parametrize("method", [pytest.param("lora", marks=pytest.mark.needs("peft")), "hpt"])
@pytest.mark.parametrize("prefix", ["", "divided-"])
def test_moving_averages_and_models_beside_the_policy_are_those_of_one_process(
    done: Done, method: str, prefix: str
) -> None:
    """Their log-probs, and each average as a checkpoint has it: whole, whatever it was divided into."""
    ours, theirs = (
        load_file(folder / f"averages-{name}.safetensors")
        for folder, name in ((done(1), method), (done(2), prefix + method))
    )
    assert furthest(ours, theirs) <= BOUNDS["float32"]
    assert len({x.sum() for x in map(ours.get, ("average", "start", "policy")) if x is not None}) == 3


@pytest.mark.parametrize("part", ["model", "critic"])
def test_a_run_with_divided_models_leaves_whole_ones(done: Done, part: str) -> None:
    whole, divided = (load_file(done(2) / name / part / "model.safetensors") for name in ("whole", "divided"))
    assert {name: x.shape for name, x in whole.items()} == {name: x.shape for name, x in divided.items()}
    assert furthest(whole, divided) < 1e-5
    config = AutoModelForCausalLM.from_pretrained(done(2) / "divided" / "model").config
    assert config.architectures == ["LlamaForCausalLM"]


def test_a_resumed_run_with_divided_models_is_the_one_that_never_stopped(done: Done) -> None:
    through, stopped = done(2) / "divided", done(2) / "stopped"
    for name in ("model/model.safetensors", "critic/model.safetensors"):
        assert (through / name).read_bytes() == (stopped / name).read_bytes()
    assert trained(through) == trained(stopped)
    assert [line["step"] for line in trained(stopped)] == [0, 1, 2, 3]


def test_one_process_goes_on_where_two_with_divided_models_were(done: Done, tmp_path: Path) -> None:
    half = shutil.copytree(done(2) / "half", tmp_path / "half")
    train(upge.load(half / "recipe.yaml", [f"log.folder={half}", "train.steps=4"]), resume=half)
    for part in ("model", "critic"):
        ours, theirs = (load_file(folder / part / "model.safetensors") for folder in (half, done(2) / "divided"))
        assert furthest(ours, theirs) < 1e-5


@pytest.mark.parametrize("part", ["model", "critic"])
def test_checkpoints_of_divided_models_have_whole_moments(done: Done, part: str) -> None:
    place = done(2) / "divided" / "checkpoints" / "step-000004"
    weights = load_file(place / part / "model.safetensors")
    moments = load_file(place / f"{part}-optimizer.safetensors")
    firsts = {name.removesuffix("/exp_avg"): x for name, x in moments.items() if name.endswith("/exp_avg")}
    assert {name: x.shape for name, x in firsts.items()} == {name: x.shape for name, x in weights.items()}


def test_weights_of_a_divided_policy_reach_an_engine_whole(done: Done, tmp_path: Path) -> None:
    reached_whole(done(2) / "exchanged", ranks.recipe_of(tmp_path, "sft", "all", "float32"))


@pytest.mark.needs("peft")
def test_a_run_with_a_divided_adapter_leaves_it_merged(done: Done) -> None:
    whole, divided = (
        load_file(done(2) / name / "model" / "model.safetensors") for name in ("adapted-whole", "adapted")
    )
    assert furthest(whole, divided) < 1e-5
    config = AutoModelForCausalLM.from_pretrained(done(2) / "adapted" / "model").config
    assert config.architectures == ["LlamaForCausalLM"]


@pytest.mark.needs("peft")
def test_a_resumed_run_with_a_divided_adapter_is_the_one_that_never_stopped(done: Done) -> None:
    through, stopped = done(2) / "adapted", done(2) / "adapted-stopped"
    for name in ("model/model.safetensors", "critic/model.safetensors"):
        assert (through / name).read_bytes() == (stopped / name).read_bytes()
    assert trained(through) == trained(stopped)
    saved = load_file(stopped / "checkpoints" / "step-000004" / "model" / "adapter_model.safetensors")
    assert all(".lora_" in name for name in saved)


# What accelerate's config requests.


@pytest.mark.parametrize(
    ("variables", "overrides", "said"),
    [
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, (), "Megatron"),
        ({"ACCELERATE_USE_FSDP": "true"}, (), "fsdp_version: 2"),
        (ranks.FSDP2 | {"FSDP_ACTIVATION_CHECKPOINTING": "true"}, (), "model.gradient_checkpointing: true"),
        (ranks.FSDP2 | {"FSDP_OFFLOAD_PARAMS": "true"}, (), "fsdp_offload_params"),
        (ranks.FSDP2, (QUANTIZED,), "quantized weights"),
        (ranks.FSDP2, ("train.precision=float16",), "bfloat16"),
    ],
)
def test_what_a_run_cannot_divide_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    variables: dict[str, str],
    overrides: tuple[str, ...],
    said: str,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    recipe = upge.load(tiny.recipe(tmp_path), overrides)
    with pytest.raises(InputError, match=said):
        accelerator.check(recipe.train, recipe.model)


def test_a_whole_model_passes_through() -> None:
    model = nn.Linear(2, 3)
    assert not shards.sharded(model)
    shards.load(model, {"weight": torch.ones(3, 2), "of another": torch.ones(1)})
    assert model.weight.eq(1).all()
    assert shards.whole([("a", model.weight), ("b", model.weight)], keep=True)["b"].eq(1).all()
    assert shards.whole([("a", model.weight)], keep=False) == {}


@pytest.mark.heavy
def test_accelerate_launches_with_the_shipped_config_and_transformers_cannot_sample_then(tmp_path: Path) -> None:
    config = Path(__file__).parents[2] / "recipes" / "paper" / "fsdp2.json"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    command = [*launch, "--num_processes=2", "-m", "upge", "run", str(tiny.recipe(tmp_path)), "train.steps=1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "accelerate has no FSDP without GPUs: upge divides the model over 2 processes" in ended.stderr
    assert "can't sample from a model that is divided over ranks" in ended.stderr
