"""Runs side by side: which curves they share, and what is said of a folder that is no run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from upge.cli.main import app
from upge.errors import InputError
from upge.runs.curves import WIDTH, opened, shared_metrics, sparkline


def a_run(folder: Path, name: str, rewards: list[float], **more: float) -> Path:
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"recipe": {"name": name}}))
    lines = [{"phase": "train", "step": i, "reward": reward, **more} for i, reward in enumerate(rewards)]
    lines.append({"phase": "eval", "step": len(rewards), "test/avg@4": rewards[-1], "test/pass@4": 1.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["compare", *arguments])


def test_two_runs_side_by_side(tmp_path: Path) -> None:
    one = a_run(tmp_path / "one", "grpo", [0.0, 0.25, 0.5], entropy=1.0)
    other = a_run(tmp_path / "other", "mine <b>", [0.0, 1.0, 1.0])
    result = call(str(one), str(other), "--output", str(tmp_path / "both.html"))
    assert result.exit_code == 0, result.output
    assert re.search(r"reward +grpo +0\.000 +0\.500 +▁▃▅", result.stdout)
    assert re.search(r"mine <b> +0\.000 +1\.000 +▁██", result.stdout)
    assert re.search(r"test/avg@4 +grpo", result.stdout)
    assert "entropy" not in result.stdout
    text = (tmp_path / "both.html").read_text()
    assert text.count('<figure class="chart">') == 3
    assert text.count('<path class="line"') == 6
    assert "mine &lt;b&gt;" in text
    assert "<b>" not in text
    assert "http:" not in text
    assert "https:" not in text
    for name in ("both.md", "both.json"):
        assert "several seeds each" in str(call(str(one), str(other), "--output", str(tmp_path / name)).exception)
        assert not (tmp_path / name).exists()


def test_runs_of_one_recipe_go_by_their_folders(tmp_path: Path) -> None:
    runs = opened([a_run(tmp_path / name, "grpo", [0.0]) for name in ("seed-0", "seed-1")])
    assert [run.name for run in runs] == ["seed-0", "seed-1"]
    for place in ("first", "second"):
        (tmp_path / place).mkdir()
    folders = [a_run(tmp_path / place / "tiny", "tiny", [0.0]) for place in ("first", "second")]
    assert [run.name for run in opened(folders)] == list(map(str, folders))


def test_only_what_several_runs_have_is_shared(tmp_path: Path) -> None:
    runs = opened([a_run(tmp_path / "a", "a", [0.0], kl=1.0), a_run(tmp_path / "b", "b", [0.0])])
    assert shared_metrics(runs) == ["test/avg@4", "test/pass@4", "reward"]
    assert "kl" in shared_metrics(runs[:1])


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one", "one", [0.0])
    for path, said in ((tmp_path / "nowhere", "no run folder"), (tmp_path, "no run folder")):
        result = call(str(run), str(path))
        assert isinstance(result.exception, InputError)
        assert said in str(result.exception)
    assert "there are test/avg@4" in str(call(str(run), "--metric", "nonsense").exception)
    (run / "metrics.jsonl").write_text("not JSON\n")
    assert "can't be read" in str(call(str(run)).exception)


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = a_run(tmp_path / "one", "one", [0.0, 0.5])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"phase": "train", "st')
    assert len(opened([run])[0].curve("reward")) == 2


@pytest.mark.parametrize("points", [1, 2, WIDTH, WIDTH + 1, 1000])
def test_a_sparkline_is_as_wide_as_its_curve_up_to_a_bound(points: int) -> None:
    line = sparkline([(i, i / points) for i in range(points)], 0.0, 1.0)
    assert len(line) == min(points, WIDTH)
    assert list(line) == sorted(line)
    assert sparkline([(0, 3.0)], 3.0, 3.0) == "▁"
    assert sparkline([], 0.0, 1.0) == ""
