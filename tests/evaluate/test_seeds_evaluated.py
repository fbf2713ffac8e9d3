"""Evaluations of several seeds: means with intervals, differences by seed, and what one recipe alone solves."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from support.svg import keys, panels
from typer.testing import CliRunner, Result

from upge.cli.main import app
from upge.evaluate.scores import Record
from upge.runs.folder import to_yaml
from upge.sweep.groups import of_seeds
from upge.sweep.scores import paired, student

RIGHT = {
    "hpt": {0: ["++--", "+---", "----"], 1: ["++++", "+---", "----"], 2: ["++--", "----", "+---"]},
    "sft": {0: ["+---", "----", "----"], 1: ["----", "++--", "+---"], 2: ["++--", "----", "----"]},
}
"""Recipe → seed → a problem's four samples, right or wrong."""


def evaluation(folder: Path, name: str, seed: int, rows: list[str], **settings: Any) -> Path:
    folder.mkdir()
    model = {"path": f"runs/{name}-s{seed}"}
    recipe = {"name": name, "model": model, "train": {"seed": seed}, "log": {"folder": f"runs/{name}"}} | settings
    (folder / "recipe.yaml").write_text(to_yaml(recipe))
    records = [Record("test", f"p{index}", "even" if index == 0 else "odd") for index in range(len(rows))]
    for record, row in zip(records, rows, strict=True):
        for sign in row:
            record.add(float(sign == "+"), False, 3)
    (folder / "problems.jsonl").write_text("".join(json.dumps(each.line()) + "\n" for each in records))
    (folder / "summary.json").write_text(json.dumps({"pass_at": [2], "seed": seed}))
    return folder


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        evaluation(tmp_path / f"{name}-{seed}", name, seed, rows)
        for name, seeds in RIGHT.items()
        for seed, rows in seeds.items()
    ]


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def test_seeds_are_means_and_differences_are_by_seed(folders: list[Path], tmp_path: Path) -> None:
    answer = call(*folders, "--output", tmp_path / "out.json")
    assert answer.exit_code == 0, answer.output
    said = json.loads((tmp_path / "out.json").read_text())["last"]
    found = {(each["metric"], each["group"]): each for each in said}
    means = {
        name: {seed: fmean(row.count("+") / 4 for row in rows) for seed, rows in seeds.items()}
        for name, seeds in RIGHT.items()
    }
    ours, theirs = found["test/avg@4", "hpt"], found["test/avg@4", "sft"]
    assert ours["values"] == {str(seed): pytest.approx(value) for seed, value in means["hpt"].items()}
    mean, gap = student(list(means["sft"].values())), paired(means["hpt"], means["sft"])
    assert gap is not None
    assert theirs["mean"] == pytest.approx({"value": mean.value, "low": mean.low, "high": mean.high})
    assert theirs["difference"] == pytest.approx({"value": gap.value, "low": gap.low, "high": gap.high})
    assert {"test/pass@2", "test/even/avg@4", "test/odd/pass@2", "test/truncated"} <= {each["metric"] for each in said}
    assert "test/pass@2" in answer.stdout


def test_the_picture_has_pass_at_k_of_each_place(folders: list[Path], tmp_path: Path) -> None:
    answer = call(*folders, "--output", tmp_path / "out.svg")
    assert answer.exit_code == 0, answer.output
    assert keys(tmp_path / "out.svg") == list(RIGHT)
    assert list(panels(tmp_path / "out.svg")) == ["test", "test/even", "test/odd"]
    one = call(folders[0], folders[3], "--output", tmp_path / "one.svg")
    assert "several seeds" in str(one.exception)


def test_tables_have_the_scores_that_are_asked_for(folders: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "out.md"
    answer = call(*folders, "--metric", "test/even/avg@4", "--output", place)
    assert answer.exit_code == 0, answer.output
    assert place.read_text().startswith("**The evaluations.**")
    assert "| hpt | .667 ± .717 |" in place.read_text()  # 1/2, 1 and 1/2: 2/3 ± 4.3027/6
    assert "no score 'dev/avg@4'" in str(call(*folders, "--metric", "dev/avg@4").exception)
    assert "several seeds" in str(call(folders[0], folders[3], "--output", place).exception)


def test_alone_is_what_no_other_recipe_solves_with_that_seed(folders: list[Path]) -> None:
    groups = of_seeds(folders)
    assert groups is not None
    alone = {group.name: {seed: run.lines[0]["test/alone"] for seed, run in group.runs.items()} for group in groups}
    assert alone["hpt"] == pytest.approx({0: 1 / 3, 1: 1 / 3, 2: 1 / 3})
    assert alone["sft"] == pytest.approx({0: 0, 1: 1 / 3, 2: 0})


def test_a_seed_that_one_recipe_lacks_says_nothing_of_what_is_solved_alone(folders: list[Path]) -> None:
    groups = of_seeds(folders[:-1])
    assert groups is not None
    known = [seed for seed, run in groups[0].runs.items() if "test/alone" in run.lines[0]]
    assert known == [0, 1]
    assert call(*folders[:-1]).exit_code == 0


def test_models_that_are_measured_with_one_recipe_are_compared_one_by_one(tmp_path: Path) -> None:
    pair = [evaluation(tmp_path / name, "aime", 0, ["+---"], model={"path": name}) for name in ("one", "other")]
    assert of_seeds(pair) is None
    answer = call(*pair)
    assert answer.exit_code == 0, answer.output
    assert "only by one" in " ".join(answer.stdout.split())


def test_a_page_of_evaluations_is_refused(folders: list[Path], tmp_path: Path) -> None:
    answer = call(*folders, "--output", tmp_path / "out.html")
    assert "a file .json, .md or .svg" in str(answer.exception)
