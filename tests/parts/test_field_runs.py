"""Runs that learn from fields: what a part reads of each, and runs that go on where they were."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from math import nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import field_recipe
from torch import Tensor

import upge
from upge.model.loading import load_policy
from upge.types import Problem

Lines = list[dict[str, Any]]


def completions(folder: Path) -> list[Lines]:
    """The rollouts of each step, in the order of the batch."""
    lines = [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]
    steps: dict[int, Lines] = {}
    for line in lines:
        steps.setdefault(line["step"], []).append(line)
    return [steps[step] for step in sorted(steps)]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> upge.Recipe:
    """A recipe that a run was made of, in its folder."""
    loaded = upge.load(field_recipe.recipe(tmp_path_factory.mktemp("fields")), allow_code=True)
    field_recipe.seen(loaded).clear()
    upge.train(loaded)
    return loaded


@pytest.fixture(scope="module")
def seen(recipe: upge.Recipe) -> list[dict[str, Tensor]]:
    return field_recipe.seen(recipe)


@pytest.fixture(scope="module")
def rows(recipe: upge.Recipe) -> list[Lines]:
    return completions(recipe.log.path(recipe.name))


@pytest.fixture(scope="module")
def data(recipe: upge.Recipe) -> dict[str, dict[str, Any]]:
    lines = map(json.loads, Path(recipe.data.path).read_text().splitlines())  # type: ignore[attr-defined]
    return {line["id"]: line for line in lines}


def prompts(lines: Lines) -> list[str]:
    """The ids of a batch's problems in its order; the tiny task has none twice in one batch."""
    return list(dict.fromkeys(line["problem"] for line in lines))


def test_the_policy_is_asked_as_it_is_at_the_batchs_start(seen: list[dict[str, Tensor]]) -> None:
    assert len(seen) == 4
    for step in seen:
        torch.testing.assert_close(step["own"], step["logp"], atol=1e-6, rtol=0)


def test_the_start_stays_and_averages_follow(seen: list[dict[str, Tensor]]) -> None:
    for name in ("start", "slow", "copy"):
        torch.testing.assert_close(seen[0][name], seen[0]["own"], atol=1e-6, rtol=0)
    for step in seen[1:]:
        torch.testing.assert_close(step["copy"], step["own"], atol=1e-6, rtol=0)  # a copy after each batch
        apart = [float((step[name] - step["own"]).abs().max()) for name in ("start", "slow")]
        assert min(apart) > 1e-4
    away = [float((step["slow"] - step["own"]).abs().mean()) for step in seen]
    assert away[3] < float((seen[3]["start"] - seen[3]["own"]).abs().mean()), "an average is nearer than the start"


def asked_by_hand(recipe: upge.Recipe, rows: list[Lines], made: Callable[[dict[str, Any]], str | None]) -> Tensor:
    """log-probs of the first batch under the untrained policy, its prompts as `made` of each rollout; None is NaN."""
    policy = load_policy(**recipe.policy_arguments())
    tokens, found = policy.templater(recipe.data.template, recipe.data.system).prompt, []
    for line in rows[0]:
        response, prompt = tuple(line["tokens"]), made(line)
        if prompt is None:
            found.append(torch.full((len(response),), nan))
        else:
            pair = (tokens(Problem("", prompt, None)), response)
            found.append(policy.log_probs([pair], torch.ones(1))[0].detach())
    return torch.cat(found)


def test_prompts_are_filled_in(
    recipe: upge.Recipe, seen: list[dict[str, Tensor]], rows: list[Lines], data: dict[str, dict[str, Any]]
) -> None:
    def hinted(line: dict[str, Any]) -> str:
        return data[line["problem"]]["demonstration"] + data[line["problem"]]["prompt"]

    def rare(line: dict[str, Any]) -> str | None:
        row = data[line["problem"]]
        return row["only"] + row["prompt"] if "only" in row else None

    def solved(line: dict[str, Any]) -> str | None:
        own = [other for other in rows[0] if other["problem"] == line["problem"]]
        best = max(own, key=lambda other: other["reward"])
        return best["text"] + data[line["problem"]]["prompt"] if best["reward"] > 0 else None

    for name, made in (("hinted", hinted), ("rare", rare), ("solved", solved)):
        expected = asked_by_hand(recipe, rows, made)
        torch.testing.assert_close(seen[0][name], expected, atol=1e-5, rtol=0, equal_nan=True)
    assert 0 < seen[0]["solved"].isnan().sum() < len(seen[0]["solved"]), "some prompts are solved, and others aren't"


def test_scores_marks_and_columns_are_those_of_the_responses_and_problems(
    seen: list[dict[str, Tensor]], rows: list[Lines], data: dict[str, dict[str, Any]]
) -> None:
    for step, lines in zip(seen, rows, strict=True):
        assert step["second"].tolist() == [float("a" in line["text"]) for line in lines]
        assert step["level"].tolist() == [data[name]["level"] for name in prompts(lines)]
        marks = []
        for line in lines:
            # <pad> and <eos>, 0 and 1, have no text: "a<pad>b" is "ab".
            spoken = [at for at, each in enumerate(line["tokens"]) if each > 1]
            pairs = itertools.pairwise(spoken)
            ends = {last for first, last in pairs if (line["tokens"][first], line["tokens"][last]) == (2, 3)}
            marks += [float(at in ends) for at in range(len(line["tokens"]))]
        assert step["marks"].tolist() == marks
    assert any(step["marks"].any() for step in seen)


def test_histories_are_of_the_batches_before(seen: list[dict[str, Tensor]], rows: list[Lines]) -> None:
    visits: dict[str, list[float]] = {}
    for step, lines in zip(seen, rows, strict=True):
        expected = [[*visits.get(name, []), nan, nan][:2] for name in prompts(lines)]
        torch.testing.assert_close(step["history"].double(), torch.tensor(expected).double(), equal_nan=True)
        for name in prompts(lines):
            rewards = [line["reward"] for line in lines if line["problem"] == name]
            visits[name] = [sum(rewards) / len(rewards), *visits.get(name, [])]
    assert not seen[3]["history"][:, 0].isnan().any(), "after three batches of eight all 24 problems have been there"


def test_a_run_that_goes_on_has_the_bytes_of_one_that_never_stopped(tmp_path: Path) -> None:
    path = field_recipe.recipe(tmp_path)

    def run(name: str, *overrides: str, resume: bool = False) -> Path:
        settings = [f"log.folder={tmp_path / name}", "train.save_every=1", *overrides]
        loaded = upge.load(path, settings, allow_code=True)
        return upge.train(loaded, resume=tmp_path / name if resume else None)

    through, stopped = run("through"), run("stopped", "train.steps=2")
    run("stopped", resume=True)
    for name in ("metrics.jsonl", "completions.jsonl", "credit.jsonl", "model/model.safetensors"):
        assert (through / name).read_bytes() == (stopped / name).read_bytes(), name
    for name in ("fields.json", "averages.safetensors"):
        one, other = (folder / "checkpoints" / "step-000004" / name for folder in (through, stopped))
        assert one.read_bytes() == other.read_bytes(), name
    history = json.loads((through / "checkpoints" / "step-000004" / "fields.json").read_text())["history"]
    assert sorted(len(visits) for visits in history["visits"].values()) == [1] * 16 + [2] * 8


def test_a_teacher_is_asked_in_a_run(tmp_path: Path) -> None:
    path = field_recipe.recipe(tmp_path)
    first = upge.load(path, allow_code=True)
    teacher = load_policy(**first.policy_arguments() | {"seed": 9})
    teacher.save(tmp_path / "teacher")
    settings = [f"fields.own.path={tmp_path / 'teacher'}", f"log.folder={tmp_path / 'taught'}", "train.steps=2"]
    recipe = upge.load(path, settings, allow_code=True)
    field_recipe.seen(recipe).clear()
    upge.train(recipe)
    tokens = teacher.templater(recipe.data.template, recipe.data.system).prompt
    rows = completions(tmp_path / "taught")[1]
    known = {line["id"]: line for line in map(json.loads, (tmp_path / "problems.jsonl").read_text().splitlines())}
    pairs = [(tokens(Problem("", known[line["problem"]]["prompt"], None)), tuple(line["tokens"])) for line in rows]
    expected = teacher.log_probs(pairs, torch.ones(len(pairs)))[0].detach()
    torch.testing.assert_close(field_recipe.seen(recipe)[1]["own"], expected, atol=1e-5, rtol=0)


@pytest.mark.needs("peft")
def test_of_an_adapter_the_start_is_the_policy_without_it_and_averages_are_of_the_adapter(tmp_path: Path) -> None:
    path = field_recipe.recipe(tmp_path)
    recipe = upge.load(path, ["model.lora={rank: 2, alpha: 4}", "train.save_every=3", "train.steps=3"], allow_code=True)
    field_recipe.seen(recipe).clear()
    folder = upge.train(recipe)
    for number, step in enumerate(field_recipe.seen(recipe)):
        for name in ("own", "copy"):
            torch.testing.assert_close(step[name], step["logp"], atol=1e-6, rtol=0)
        assert torch.allclose(step["start"], step["logp"], atol=1e-6) == (number == 0)
    averages = load_file(folder / "checkpoints" / "step-000003" / "averages.safetensors")
    assert averages
    assert all("lora_" in name for name in averages)
