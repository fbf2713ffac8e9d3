"""What a finished run or an interrupted evaluation says when something befalls it at its end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
from typer.testing import CliRunner

import upge
from upge.command import app
from upge.errors import InputError
from upge.report import writing
from upge.run import evaluation, tracking


@pytest.mark.parametrize("error", [InputError("report.html: can't be written"), OSError(28, "full"), ValueError("odd")])
def test_a_run_whose_report_can_not_be_written_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def write(*given: Any, **named: Any) -> Path:
        raise error

    monkeypatch.setattr(writing, "write", write)
    recipe = tiny.recipe(tmp_path, train={"steps": 0}, eval={"splits": []})
    result = CliRunner().invoke(app, ["run", str(recipe)])
    assert result.exit_code == 0, result.output
    assert f"the run is finished; its report could not be written: {error}" in result.stderr
    assert "upge report " in result.stderr
    assert (tmp_path / "run" / "model").is_dir()


@pytest.mark.parametrize(("before", "said"), [(False, "before the first response"), (True, "after 3 of 10")])
def test_an_interrupted_evaluation_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool, said: str
) -> None:
    def evaluate_model(recipe: upge.Recipe, folder: Path, *, show: Any, **named: Any) -> None:
        if before:
            show(folder, 3, 10)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluation, "evaluate_model", evaluate_model)
    recipe = tiny.recipe(tmp_path)
    words = ["eval", "upge_parts:data/lab/base", "--recipe", str(recipe), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 130, result.output
    assert said in result.stderr
    assert (f"--resume {tmp_path / 'out'}" in result.stderr) == before


def test_a_tracker_that_can_not_be_closed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    class Gone:
        def end_training(self) -> None:
            raise ConnectionError("gone")

    recipe: Any = type("R", (), {"log": type("L", (), {"trackers": ("wandb",)})})
    gone: Any = Gone()
    tracking._close(recipe, gone)
    assert capsys.readouterr().err == "log.trackers: wandb can't be closed: ConnectionError: gone\n"
