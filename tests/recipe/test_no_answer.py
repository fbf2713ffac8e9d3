"""Problems without an answer: how a recipe says so, what survives a dump, and who refuses them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from support import tiny
from support.data_sources import data, lines, parquet, training

import upge
from upge import Context, InputError, Problem
from upge.part import AReward, SomeData
from upge.runs.folder import to_yaml
from upge.train.run import train

RECIPE = """\
extends: grpo.yaml
name: silent
data: {use: jsonl, path: rows.jsonl, demonstration: text%s}
eval: null
"""


def loaded(folder: Path, settings: str, *overrides: str) -> upge.Recipe:
    file = folder / "silent.yaml"
    file.write_text(RECIPE % settings)
    return upge.load(file, overrides)


def answer_of(recipe: upge.Recipe) -> str | None:
    return recipe.data.answer  # type: ignore[attr-defined,no-any-return]


@pytest.mark.parametrize(
    ("settings", "overrides", "said"),
    [
        ("", (), "answer"),
        (", answer: null", (), None),
        (", answer: ~", (), None),
        (", answer: solution", (), "solution"),
        (", answer: solution", ("data.answer=null",), None),
        ("", ("data.answer=null",), None),
        (", answer: null", ("data.answer=answer",), "answer"),
        (", answer: null", ("data.answer=null",), None),
        ("", ("data={answer: null}",), None),
        ("", ("data=null", "data={use: jsonl, path: rows.jsonl, answer: null}"), None),
    ],
)
def test_null_says_that_there_is_no_answer_in_a_file_and_on_the_command_line(
    tmp_path: Path, settings: str, overrides: tuple[str, ...], said: str | None
) -> None:
    assert answer_of(loaded(tmp_path, settings, *overrides)) == said


def test_null_in_a_child_overrules_the_column_of_the_parent(tmp_path: Path) -> None:
    loaded(tmp_path, ", answer: solution")
    child = tmp_path / "child.yaml"
    child.write_text("extends: silent.yaml\ndata: {answer: null}\n")
    assert answer_of(upge.load(child)) is None


def test_a_dumped_recipe_still_has_no_answer(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, ", answer: null")
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(recipe.model_dump(mode="json")))
    assert upge.load(again) == recipe
    assert answer_of(upge.load(again)) is None


def test_null_is_a_value_in_a_map_of_any_values_and_survives_there(tmp_path: Path) -> None:
    overrides = ("model.overrides={rope_scaling: null, deep: {x: null, y: [null]}, z: 1}",)
    recipe = loaded(tmp_path, "", *overrides)
    assert recipe.model.overrides == {"rope_scaling": None, "deep": {"x": None, "y": (None,)}, "z": 1}
    again = tmp_path / "again.yaml"
    again.write_text(to_yaml(recipe.model_dump(mode="json")))
    assert upge.load(again) == recipe


def test_null_still_removes_a_key_whose_default_is_null_or_that_takes_none(tmp_path: Path) -> None:
    recipe = loaded(tmp_path, ", band: level", "data.band=null", "rollout.n=null", "estimator.terms.rl.mask.low=0.1")
    assert recipe.data.band is None  # type: ignore[attr-defined]
    assert recipe.rollout.n == upge.load("grpo.yaml", ["rollout.n=null"]).rollout.n == 8


@pytest.mark.parametrize("form", ["jsonl", "parquet", "huggingface"])
def test_data_may_have_no_answers_or_lack_one(tmp_path: Path, form: str) -> None:
    if form == "jsonl":
        path = lines(tmp_path, {"prompt": "a?", "answer": "a"}, {"prompt": "b?", "answer": None})
    else:
        path = _parquet(tmp_path, form)
    assert {each.answer for each in training(data(form, path=path), 2)} == {"a", None}
    assert {each.answer for each in training(data(form, path=path, answer=None), 2)} == {None}


def _parquet(folder: Path, form: str) -> str:
    file = parquet(folder / "set", [{"prompt": "a?", "answer": "a"}, {"prompt": "b?", "answer": None}], "train.parquet")
    return str(file if form == "parquet" else file.parent)


def test_a_demonstration_does_not_announce_an_answer_that_there_is_not(tmp_path: Path) -> None:
    row = {"prompt": "?", "answer": None, "demonstration": "So."}
    part = data("jsonl", path=lines(tmp_path, row), demonstration_template="{demonstration} The answer is {answer}")
    with pytest.raises(InputError, match=r"rows.jsonl:1: has no answer for the \{answer\} of demonstration_template"):
        training(part, 1)


def test_braces_in_an_answer_are_not_filled(tmp_path: Path) -> None:
    row = {"prompt": "?", "answer": "{demonstration}", "demonstration": "So."}
    part = data("jsonl", path=lines(tmp_path, row), demonstration_template="{demonstration} {answer}")
    assert training(part, 1)[0].demonstration == "So. {demonstration}"


COMPARING: list[Any] = [
    "exact",
    {"use": "exact", "after": "####"},
    "choice",
    {"use": "weighted", "rewards": ("format", "exact"), "weights": (1.0, 1.0)},
]


@pytest.mark.parametrize("value", COMPARING, ids=str)
@pytest.mark.parametrize("answer", [None, "", " \n"], ids=repr)
def test_a_reward_that_compares_refuses_a_problem_without_an_answer(value: Any, answer: str | None) -> None:
    reward = TypeAdapter(AReward).validate_python(value)
    problem = Problem("p", "?", answer, place="rows.jsonl:7")
    assert (reward.refusal(problem) or "").startswith("rows.jsonl:7: the problem 'p' has no answer")
    assert reward.refusal(Problem("p", "?", "A")) is None
    with reward.open(Context()) as session, pytest.raises(InputError, match=r"rows.jsonl:7: the problem 'p'"):
        session.score([(problem, "")])


@pytest.mark.needs("math_verify")
def test_the_mathematical_reward_refuses_it_too() -> None:
    reward = TypeAdapter(AReward).validate_python("math")
    with reward.open(Context()) as session, pytest.raises(InputError, match="'p' has no answer to compare with"):
        session.score([(Problem("p", "?", None), "1")])


def test_a_reward_that_compares_nothing_takes_any_problem() -> None:
    reward = TypeAdapter(AReward).validate_python({"use": "format", "pattern": ".*"})
    assert reward.refusal(Problem("p", "?", None)) is None


def test_a_mixture_keeps_the_place_of_its_sources_problems(tmp_path: Path) -> None:
    source = {"use": "jsonl", "path": lines(tmp_path, {"prompt": "?", "answer": None})}
    part = TypeAdapter(SomeData).validate_python({"use": "mixture", "sources": {"one": source}})
    assert (training(part, 1)[0].place or "").endswith("rows.jsonl:1")


@pytest.mark.parametrize("where", ["train", "test"])
def test_a_run_refuses_such_problems_by_line_before_it_samples(tmp_path: Path, where: str) -> None:
    rows = [{"prompt": "aa?", "answer": "a"}, {"prompt": "ab?", "answer": None}]
    whole, lacking = tmp_path / "whole.jsonl", tmp_path / "lacking.jsonl"
    whole.write_text("".join(json.dumps(row | {"answer": "a"}) + "\n" for row in rows))
    lacking.write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {"train": whole, "test": whole} | {where: lacking}
    block = {"use": "jsonl", "path": str(files["train"]), "evaluation": {"test": str(files["test"])}}
    recipe = upge.load(tiny.recipe(tmp_path, data=block, train={"steps": 1}))
    with pytest.raises(InputError, match=r"lacking\.jsonl:2: the problem 'lacking-2' has no answer"):
        train(recipe)
    assert not list(tmp_path.rglob("completions.jsonl"))
