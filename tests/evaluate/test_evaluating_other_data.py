"""`upge eval --data`: a model on other data of every kind, put to it as its own recipe puts them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support import tiny
from support.data_sources import LETTERS, MAPPED, parquet
from support.evaluations import done, lines, measured_run, refused

import upge
from upge.train.run import train


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run on the tiny task, with other problems beside it."""
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "set", LETTERS, "train.parquet")
    rows = [json.loads(line) for line in tiny.problems(tmp_path).read_text().splitlines()]
    parquet(tmp_path, rows[:4], "held.parquet")
    Path("held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:4]))
    return measured_run(tmp_path)


SET = {"use": "huggingface", "path": "set", "evaluation": {"some": "train[:4]"}, **MAPPED}
FILE = {"use": "parquet", "path": "set/train.parquet", "evaluation": {"some": "set/train.parquet"}, **MAPPED}
GYM = {"use": "reasoning_gym", "generator": "letter_counting", "size": 9}
MORE = {"evaluation": {"some": {"seed": 1000, "size": 4}}}


@pytest.mark.parametrize(
    ("given", "split"),
    [
        (["held.jsonl"], "held"),
        (["held.parquet"], "held"),
        ([json.dumps(SET), "eval.splits=[some]"], "some"),
        ([json.dumps({**SET, "streaming": True}), "eval.splits=[some]"], "some"),
        ([json.dumps(FILE), "eval.splits=[some]"], "some"),
        ([json.dumps({"use": "mixture", "sources": {"one": SET}}), "eval.splits=[one/some]"], "one/some"),
        (["lab"], "test"),
    ],
)
def test_a_run_is_measured_on_data_of_every_kind(run: Path, given: list[str], split: str) -> None:
    value, *overrides = given
    done(run, "--data", value, "--output", "out", "eval.limit=4", *overrides)
    found = lines(Path("out/problems.jsonl"))
    assert [(line["split"], line["n"]) for line in found] == [(split, 3)] * 4
    assert len(lines(Path("out/completions.jsonl"))) == 12


@pytest.mark.needs("reasoning_gym")
def test_and_on_a_generator_s_problems(run: Path) -> None:
    more = ["eval.splits=[some]", "reward=reasoning_gym", "model.overrides={max_position_embeddings: 512}"]
    done(run, "--data", json.dumps({**GYM, **MORE}), "--output", "out", *more)
    assert len(lines(Path("out/problems.jsonl"))) == 4


def test_prompts_are_put_as_the_run_puts_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny.recipe(tmp_path, train={"steps": 0}, eval={"splits": []}, data={"template": "{system}{prompt}="})
    folder = train(upge.load(path, ["data.system=b"]))
    done(folder, "--data", "problems.jsonl", "--output", "out", "eval.limit=2")
    data = upge.load("out/recipe.yaml").data
    assert (data.template, data.system) == ("{system}{prompt}=", "b")
    assert data.dump()["evaluation"] == {"problems": "problems.jsonl"}
    done(folder, "--data", "problems.jsonl", "--output", "other", "eval.limit=2", "data.system=c")
    assert upge.load("other/recipe.yaml").data.system == "c"


def test_data_that_are_not_there_are_refused(run: Path) -> None:
    assert "nowhere.jsonl: can't be read" in refused(run, "--data", "nowhere.jsonl")
    assert "no data is called 'nothing'" in refused(run, "--data", "nothing")
    assert not Path("evaluations").exists()
