"""Under DeepSpeed: one process's gradient, parameters and metrics, whatever stage of ZeRO divides how many ways.

The group `deepspeed` is optional: `pip install -e '.[test,deepspeed,peft]'`, then `pytest -m deepspeed`. It runs on the
CPU, over gloo; what DeepSpeed compiles for that takes two minutes the first time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from support import ranks, ranks_zero, tiny
from support.process_outcomes import Done, agree, cases, furthest, launched, metrics, reached_whole, trained
from transformers import AutoModelForCausalLM

import upge
from upge.train.run import train

pytestmark = [pytest.mark.deepspeed, pytest.mark.needs("deepspeed")]

ROOT = Path(__file__).parents[2]
every_stage = pytest.mark.parametrize("stage", ranks_zero.STAGES)


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    """What so many processes have left of all settings, at every stage."""
    return launched("ranks_zero.py", tmp_path_factory)


@every_stage
@pytest.mark.parametrize("setting", cases(ranks_zero.SETTINGS))
def test_processes_learn_what_one_does(done: Done, stage: str, setting: ranks.Setting) -> None:
    agree(done(1), done(2), setting, stage)


@every_stage
@pytest.mark.parametrize("setting", cases(ranks_zero.UNEVEN))
def test_so_do_shares_of_different_sizes(done: Done, stage: str, setting: ranks.Setting) -> None:
    agree(done(1), done(3), setting, stage)


@every_stage
@pytest.mark.parametrize("setting", ["scaled", "bfloat16"])
def test_so_do_other_heads_and_other_precisions(done: Done, stage: str, setting: str) -> None:
    agree(done(2), done(2), (setting, "float32"), stage)


@every_stage
def test_refused_gradients_leave_no_trace(done: Done, stage: str) -> None:
    agree(done(2), done(2), ("guarded", "float32"), stage)
    lines = metrics(done(2), stage, "guarded", "float32")
    outcomes = [next(name for name in ("made", "skipped", "not_finite") if line[f"updates/{name}"]) for line in lines]
    assert outcomes == ["made", "skipped", "not_finite", "made", "not_finite", "made"]
    assert all(line["grad_norm"] > 0.5 for line in lines if line["updates/made"])  # which is where they are clipped


# Runs.


@every_stage
@pytest.mark.parametrize("part", ["model", "critic"])
def test_a_run_leaves_whole_models(done: Done, stage: str, part: str) -> None:
    whole, divided = (load_file(done(2) / name / part / "model.safetensors") for name in ("whole", f"{stage}-divided"))
    assert {name: x.shape for name, x in whole.items()} == {name: x.shape for name, x in divided.items()}
    assert furthest(whole, divided) < 1e-5
    config = AutoModelForCausalLM.from_pretrained(done(2) / f"{stage}-divided" / "model").config
    assert config.architectures == ["LlamaForCausalLM"]


@every_stage
def test_a_resumed_run_is_the_one_that_never_stopped(done: Done, stage: str) -> None:
    through, stopped = done(2) / f"{stage}-divided", done(2) / f"{stage}-stopped"
    for name in ("model/model.safetensors", "critic/model.safetensors"):
        assert (through / name).read_bytes() == (stopped / name).read_bytes()
    assert trained(through) == trained(stopped)
    assert [line["step"] for line in trained(stopped)] == [0, 1, 2, 3]


@every_stage
def test_one_process_goes_on_where_two_were(done: Done, tmp_path: Path, stage: str) -> None:
    half = shutil.copytree(done(2) / f"{stage}-half", tmp_path / "half")
    train(upge.load(half / "recipe.yaml", [f"log.folder={half}", "train.steps=4"]), resume=half)
    for part in ("model", "critic"):
        ours, theirs = (load_file(folder / part / "model.safetensors") for folder in (half, done(2) / "whole"))
        assert furthest(ours, theirs) < 1e-5


def test_another_stage_goes_on_where_one_was(done: Done) -> None:
    for part in ("model", "critic"):
        ours, theirs = (load_file(done(2) / name / part / "model.safetensors") for name in ("changed", "whole"))
        assert furthest(ours, theirs) < 1e-5


@every_stage
@pytest.mark.parametrize("part", ["model", "critic"])
def test_checkpoints_are_those_of_any_run(done: Done, stage: str, part: str) -> None:
    place = done(2) / f"{stage}-divided" / "checkpoints" / "step-000004"
    assert {path.suffix for path in place.rglob("*.*")} <= {".json", ".safetensors", ".jinja"}
    weights = load_file(place / part / "model.safetensors")
    moments = load_file(place / f"{part}-optimizer.safetensors")
    assert moments.keys() == {f"{name}/{moment}" for name in weights for moment in ("step", "exp_avg", "exp_avg_sq")}
    assert all(moments[f"{name}/exp_avg"].shape == x.shape for name, x in weights.items())
    assert {float(moments[f"{name}/step"]) for name in weights} == {8.0}


def test_weights_of_a_divided_policy_reach_an_engine_whole(done: Done, tmp_path: Path) -> None:
    reached_whole(done(2) / "exchanged", ranks.recipe_of(tmp_path, "sft", "all", "float32"))


@pytest.mark.needs("peft")
@every_stage
def test_a_run_with_an_adapter_leaves_it_merged_and_goes_on(done: Done, stage: str) -> None:
    names = ("adapted-whole", f"{stage}-adapted", f"{stage}-adapted-stopped")
    whole, through, stopped = (done(2) / name / "model" / "model.safetensors" for name in names)
    assert furthest(load_file(whole), load_file(through)) < 1e-5
    assert through.read_bytes() == stopped.read_bytes()
    assert trained(done(2) / names[1]) == trained(done(2) / names[2])


def test_an_evaluation_refuses_to_divide(done: Done, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "upge", "eval", "--processes", "2", str(done(2) / "whole"), "eval.splits=[test]"]
    environment = os.environ | ranks_zero.way(tmp_path, "2")
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 2
    assert "requests DeepSpeed: an evaluation keeps the model whole" in ended.stderr


@pytest.mark.parametrize(("stage", "code"), [("2", 0), ("3", 1)])
def test_accelerate_launches_with_the_shipped_config(tmp_path: Path, stage: str, code: int) -> None:
    config = ROOT / "recipes" / "paper" / "zero2.json"
    launch = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--config_file", str(config)]
    command = [*launch, "--num_processes=2", f"--zero_stage={stage}"]
    command += ["-m", "upge", "run", str(tiny.recipe(tmp_path)), "train.steps=1"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode != 0) == (code != 0), ended.stderr
    if stage == "3":
        assert "can't sample from a model that is divided over ranks" in ended.stderr
    else:
        assert "deepspeed" not in ended.stdout.lower()
        assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
