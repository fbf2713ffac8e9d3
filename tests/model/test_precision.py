"""Numbers of a run have the model's precision, and updates that its weights are too coarse for are reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from support import tiny

import upge
from upge.distributed.accelerator import open_ranks
from upge.model.loading import load_policy
from upge.rollouts.rollout_batch import RolloutBatch
from upge.train.learner import open_learner
from upge.train.run import train
from upge.types import Problem, Trajectory


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-14), ("float32", 1e-5)])
def test_log_probs_are_of_the_temperature_that_a_trajectory_was_drawn_at(
    tmp_path: Path, dtype: str, bound: float
) -> None:
    path = tiny.recipe(tmp_path, tiny.GPT2, model={"dtype": dtype})
    recipe = upge.load(path)
    policy = load_policy(**recipe.policy_arguments())
    learner = open_learner(recipe, policy, open_ranks(recipe.train, recipe.model).accelerator)
    prompt, response = (2, 3, 5), (4, 2, 3)
    rollout = Trajectory(Problem("p", "", ""), prompt, response, "", 0.0, demonstration=False, temperature=0.7)
    batch = RolloutBatch.of([rollout], torch.device("cpu"), policy.model.dtype, seed=0, step=0)
    found = learner._with_policy(batch, torch.ones(1, dtype=torch.bool), frozenset()).batch.logp
    assert found is not None
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *response[:-1]]])).logits[0, 2:].double()
    wanted = (logits / 0.7).log_softmax(-1)[range(3), list(response)]
    torch.testing.assert_close(found.double(), wanted, rtol=0.0, atol=bound)


def shares(folder: Path) -> list[float | None]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line.get("weights/changed") for line in lines if line["phase"] == "train"]


@pytest.mark.parametrize(
    ("dtype", "rate", "lost"), [("bfloat16", 1e-6, True), ("bfloat16", 0.01, False), ("float32", 1e-6, False)]
)
def test_updates_that_are_rounded_away_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, rate: float, lost: bool
) -> None:
    blocks = {"model": {"dtype": dtype}, "optimizer": {"lr": rate}, "eval": {"splits": []}}
    folder = train(upge.load(tiny.recipe(tmp_path, **blocks)))
    found = shares(folder)
    assert [share is not None and share < 0.05 for share in found] == [lost] * 3 + [False] * 2
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("model.dtype=float32") == lost
    assert said.count("a larger optimizer.lr") == lost


def test_a_resumed_run_reports_the_updates_that_one_that_never_stopped_does(tmp_path: Path) -> None:
    blocks = {"model": {"dtype": "bfloat16"}, "optimizer": {"lr": 1e-6, "warmup": 1}, "eval": {"splits": []}}
    path = tiny.recipe(tmp_path, **blocks, train={"save_every": 2})
    whole = train(upge.load(path))
    stopped = train(upge.load(path, [f"log.folder={tmp_path / 'stopped'}", "train.steps=2"]))
    train(upge.load(path, [f"log.folder={stopped}"]), resume=stopped)
    assert shares(stopped) == shares(whole)
    assert [share is not None for share in shares(whole)] == [False, True, True, True, False]
