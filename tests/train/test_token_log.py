"""credit.jsonl: which trajectories it has, that its numbers are those of the equation, that resuming cuts it back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support import tiny

import upge
from upge.train import token_log
from upge.train.run import train

STEPS = 4


def trained(folder: Path, *overrides: str, resume: Path | None = None, **blocks: Any) -> Path:
    folder.mkdir(exist_ok=True)
    recipe = upge.load(tiny.recipe(folder, **blocks), [f"train.steps={STEPS}", "eval.splits=[]", *overrides])
    return train(recipe, resume=resume)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("run"))


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "credit.jsonl").read_text().splitlines()]


def test_the_first_trajectories_of_the_first_prompts_are_kept(run: Path) -> None:
    kept = [(line["step"], line["group"], line["sample"]) for line in lines(run)]
    assert kept == [(step, group, sample) for step in range(STEPS) for group in (0, 1) for sample in (0, 1, 2, -1)]
    completions = [json.loads(line) for line in (run / "completions.jsonl").read_text().splitlines()]
    texts = {(each["step"], each["problem"], each["sample"]): each for each in completions}
    for line in lines(run):
        if line["sample"] >= 0:
            response = texts[line["step"], line["problem"], line["sample"]]
            assert "".join(line["pieces"]).replace("<eos>", "").replace("<pad>", "") == response["text"].replace(
                "<pad>", ""
            )
            assert line["reward"] == response["reward"]


def test_its_numbers_are_those_of_the_equation(run: Path) -> None:
    """On-policy mask and ratio are 1: weight = s·n·Â, with n = 1/(N·4) of rollouts, 1/(N·|o|) of demonstrations.

    N counts every trajectory of the term's source in the step, whatever its coefficient.
    """
    weighed = 0
    for line in lines(run):
        for name, term in line["terms"].items():
            assert term["coefficient"] == 1
            count = 8 * 6 * 4 if name == "rl" else 8 * len(line["pieces"])
            assert (line["sample"] < 0) == (name == "sft")
            if term["advantage"] == 0:
                assert term["weights"] == []
            else:
                assert len(term["weights"]) == len(line["pieces"])
                assert term["weights"] == pytest.approx([term["advantage"] / count] * len(line["pieces"]), rel=2e-3)
                weighed += 1
    assert weighed > STEPS


def test_a_prompt_goes_to_the_term_that_its_rollouts_say(run: Path) -> None:
    seen = set()
    for line in lines(run):
        if line["terms"]:
            seen.add((line["step"], line["group"], *line["terms"]))
    assert len({each[:2] for each in seen}) == len(seen), "of each prompt one term"
    assert len(seen) == 2 * STEPS


def test_with_several_updates_the_first_weights_are_kept(tmp_path: Path) -> None:
    once = lines(trained(tmp_path / "once", "train.steps=1"))
    twice = lines(trained(tmp_path / "twice", "train.steps=1", "train.epochs=2"))
    assert once == twice


def test_a_resumed_run_leaves_the_same_bytes(run: Path, tmp_path: Path) -> None:
    stopped = trained(tmp_path / "stopped", "train.save_every=2", "train.steps=3")
    with (stopped / "credit.jsonl").open("a") as file:
        file.write('{"half a li')
    recipe = upge.load(stopped / "recipe.yaml", [f"train.steps={STEPS}"])
    resumed = train(recipe, resume=stopped)
    assert (resumed / "credit.jsonl").read_bytes() == (run / "credit.jsonl").read_bytes()


def test_without_completions_there_is_none(tmp_path: Path) -> None:
    assert not (trained(tmp_path / "run", "log.completions=false", "train.steps=1") / "credit.jsonl").exists()


def test_long_responses_are_cut(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(token_log, "TOKENS", 2)
    folder = trained(tmp_path / "run", "train.steps=1")
    responses = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    lengths = {(each["problem"], each["sample"]): len(each["tokens"]) for each in responses}
    rollouts = [line for line in lines(folder) if line["sample"] >= 0]
    assert {line["cut"] for line in rollouts} == {True, False}
    for line in rollouts:
        assert line["cut"] == (lengths[line["problem"], line["sample"]] > 2)
        assert len(line["pieces"]) <= 2
        assert all(len(term["weights"]) <= 2 for term in line["terms"].values())
