"""What a finished run or an interrupted evaluation says when something befalls it at its end."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from typer.testing import CliRunner

import upge
from upge.cli.main import app, main
from upge.errors import InputError, Terminated
from upge.evaluate import evaluation
from upge.rollouts import sessions
from upge.train import trackers
from upge.train.run import train


@pytest.mark.parametrize("error", [InputError("report.html: can't be written"), OSError(28, "full"), ValueError("odd")])
def test_a_run_whose_report_can_not_be_written_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def write(*given: Any, **named: Any) -> Path:
        raise error

    monkeypatch.setattr("upge.report.write.write", write)
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


def test_a_terminated_evaluation_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate_model(recipe: upge.Recipe, folder: Path, *, show: Any, **named: Any) -> None:
        show(folder, 3, 10)
        raise Terminated(128 + signal.SIGTERM)

    monkeypatch.setattr(evaluation, "evaluate_model", evaluate_model)
    recipe = tiny.recipe(tmp_path)
    words = ["eval", "upge_parts:data/lab/base", "--recipe", str(recipe), "--output", str(tmp_path / "out")]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 143, result.output
    assert f"terminated after 3 of 10 responses, which are in {tmp_path / 'out'}; to resume, add" in result.stderr


def test_a_tracker_that_can_not_be_closed_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    class Gone:
        def end_training(self) -> None:
            raise ConnectionError("gone")

    recipe: Any = type("R", (), {"log": type("L", (), {"trackers": ("wandb",)})})
    gone: Any = Gone()
    trackers._close(recipe, gone)
    assert capsys.readouterr().err == "log.trackers: wandb can't be closed: ConnectionError: gone\n"


def test_ctrl_c_is_told_by_every_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def study(*given: Any, **named: Any) -> None:
        error = KeyboardInterrupt()
        error.add_note("to go on: upge")
        raise error

    monkeypatch.setattr("upge.study.study.study", study)
    monkeypatch.setattr(signal, "signal", lambda *given: None)  # the handler would outlive this test
    monkeypatch.setattr(sys, "argv", ["upge", "study", "grpo"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert capsys.readouterr().err.endswith("interrupted\nto go on: upge\n")


def test_a_finished_run_stays_so_where_a_session_can_not_be_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = sessions.opened

    @contextmanager
    def closing_fails(part: Any, place: str, *rest: Any) -> Iterator[Any]:
        with opened(part, place, *rest) as session:
            yield session
        if place == "reward":
            raise ConnectionError("gone")

    monkeypatch.setattr(sessions, "opened", closing_fails)
    recipe = tiny.recipe(tmp_path, train={"steps": 0}, eval={"splits": []})
    with pytest.raises(ConnectionError) as error:
        train(upge.load(recipe))
    folder = tmp_path / "run"
    assert error.value.__notes__ == [f"the run is finished all the same; trained model: {folder / 'model'}"]
    assert json.loads((folder / "status.json").read_text())["state"] == "finished"
    assert (folder / "model").is_dir()
