"""The lab: its task is right, its splits are apart, its demonstrations verify, and its lessons hold no test problem."""

from __future__ import annotations

import json
from collections import Counter
from importlib.resources import files
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.data_sources import data, training

import upge
from upge_parts.data.lab.lessons import LabLessons
from upge_parts.data.lab.source import Lab, shipped
from upge_parts.data.lab.task import FAMILIAR, LETTERS, OPERATIONS, SIZE, UNFAMILIAR, Task, final_answer, generate
from upge_parts.rewards.exact import Exact

SPLITS = ("train", "test", "ood")
tasks = st.builds(
    Task,
    st.permutations(LETTERS).map(lambda letters: "".join(letters[:SIZE])),
    st.text("".join(OPERATIONS), min_size=1, max_size=8),
)


def entries(split: str) -> list[dict[str, Any]]:
    text = files("upge_parts.data.lab").joinpath(f"{split}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def reward(task: Task, response: str) -> float:
    problem = upge.Problem(task.id, task.prompt(), task.answer())
    with Exact(after="=").open(upge.Context()) as session:
        return session.score([(problem, response)])[0]


@given(tasks)
def test_every_style_ends_with_the_answer(task: Task) -> None:
    for solution in (task.short(), task.worked(), task.demonstration()):
        assert final_answer(solution) == task.answer()
        assert reward(task, solution) == 1
    assert reward(task, task.answer()) == 0


@given(tasks)
def test_an_operation_only_moves_letters(task: Task) -> None:
    assert all(sorted(state) == sorted(task.state) for state in task.states())
    assert Task.from_id(task.id) == task


def test_a_worked_chain_by_hand() -> None:
    task = Task("abcdef", "RLS")
    assert task.states() == ["fedcba", "edcbaf", "decbaf"]
    assert task.demonstration() == "fedcba>LS;edcbaf>S;=decbaf"


@pytest.mark.parametrize("use", ["lab", "lab_lessons"])
def test_a_problem_says_what_it_is_made_of(use: str) -> None:
    kinds = {} if use == "lab" else {"short": 1.0, "worked": 1.0, "thorough": 1.0}
    for problem in training(data(use, **kinds), 8):
        columns = problem.columns
        assert problem.prompt == f"{columns['state']} {columns['chain']}?"
        assert columns["operations"] == len(str(columns["chain"]))
        assert columns.get("band") == problem.band


def test_the_splits_are_apart() -> None:
    ids = {split: {entry["id"] for entry in entries(split)} for split in SPLITS}
    assert not ids["train"] & ids["test"]
    assert not ids["train"] & ids["ood"]
    assert {Task.from_id(name).side for name in ids["train"]} == {"train"}
    assert {Task.from_id(name).side for name in ids["test"] | ids["ood"]} == {"test"}


def test_out_of_distribution_letters_are_in_no_training_problem() -> None:
    assert not set(FAMILIAR) & set(UNFAMILIAR)
    for entry in entries("train"):
        assert set(Task.from_id(entry["id"]).state) <= set(FAMILIAR)
    for entry in entries("ood"):
        assert set(Task.from_id(entry["id"]).state) <= set(UNFAMILIAR)


@pytest.mark.parametrize("split", SPLITS)
def test_bands_are_what_was_measured(split: str) -> None:
    for entry in entries(split):
        low, high = {"always": (58, 64), "sometimes": (2, 38), "never": (0, 0)}[entry["band"]]
        assert low <= entry["solved"] <= high
    counts = Counter(entry["band"] for entry in entries(split))
    assert min(counts.values()) >= 32
    assert counts.keys() == {"always", "sometimes", "never"}


@pytest.mark.parametrize("split", SPLITS)
def test_every_demonstration_verifies_and_fits_the_budget(split: str) -> None:
    budget = upge.load("grpo").rollout.max_tokens
    for problem in shipped(split):
        assert problem.demonstration is not None
        assert final_answer(problem.demonstration) == problem.answer
        assert len(problem.demonstration) + 1 <= budget


def test_lessons_hold_no_test_problem() -> None:
    with LabLessons(short=1, worked=1, thorough=1).open(upge.Context(seed=0)) as lessons:
        prompts = {problem.prompt for step in range(20) for problem in lessons.take(step, 50)}
    assert not prompts & {problem.prompt for problem in (*shipped("test"), *shipped("ood"))}


@pytest.mark.parametrize("development", [1, 80, 400])
def test_development_problems_are_kept_from_training_and_are_of_all_bands_alike(development: int) -> None:
    whole = Counter(problem.band for problem in shipped("train"))
    with Lab(development=development).open(upge.Context(seed=0)) as session:
        kept = session.split("dev")
        left = len(shipped("train")) - development
        trained = session.take(0, left)
    assert len(kept) == development == len({problem.id for problem in kept})
    assert len({problem.id for problem in trained}) == left
    assert not {problem.id for problem in trained} & {problem.id for problem in kept}
    for band, count in Counter(problem.band for problem in kept).items():
        assert count == pytest.approx(development * whole[band] / whole.total(), abs=1)


def test_a_batch_of_problems_depends_on_nothing_but_step_and_seed() -> None:
    with Lab().open(upge.Context(seed=3)) as one, Lab().open(upge.Context(seed=3)) as other:
        assert one.take(5, 16) == other.take(5, 16)
        seen = Counter(problem.id for step in range(len(shipped("train")) // 16) for problem in one.take(step, 16))
    assert set(seen.values()) == {1}


def test_generation_does_not_depend_on_the_machine() -> None:
    assert generate((0, 0), [3]) == generate((0, 0), [3])
    assert generate((0, 0), [3]) != generate((0, 1), [3])


def test_the_base_model_is_small() -> None:
    base = files("upge_parts.data.lab").joinpath("base")
    assert sum(len(file.read_bytes()) for file in base.iterdir()) < 4_000_000
