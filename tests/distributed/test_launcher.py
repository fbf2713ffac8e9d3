"""`upge run --processes N`: one command, one message, one exit code, whatever befalls which of its processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import tiny

from upge.distributed import launcher
from upge.errors import InputError

UPGE = [sys.executable, "-m", "upge", "run"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def upge_run(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [*UPGE, str(path), "--processes", "2", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)


def masked_by(folder: Path, body: str) -> Path:
    """The tiny recipe, with a mask that does this first."""
    (folder / "mine.py").write_text(MASK.format(body=body))
    path = tiny.recipe(folder)
    path.write_text(path.read_text().replace('"use": "clip", "low": 0.2, "high": 0.2', '"use": "mine.py:Mine"'))
    return path


MASK = '''
import os
import upge

class Mine(upge.Mask):
    """Fails on purpose."""

    def __call__(self, b):
        {body}
        return b.ratio * 0 + 1
'''


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("launched")
    return folder / "run", upge_run(tiny.recipe(folder), "train.steps=2")


def test_two_processes_make_one_run(run: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, ended = run
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["rows"] for line in lines if line["phase"] == "train"] == [8 * 6 + 8] * 2
    assert ended.stderr.count("trained model") == 1
    assert ended.stdout.count("measured on") == 1


@pytest.mark.heavy
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_command_stops_all_after_the_same_step(tmp_path: Path, number: signal.Signals) -> None:
    command = [*UPGE, str(tiny.recipe(tmp_path)), "--processes", "2", "train.steps=100000"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 1/"):
                break
        process.send_signal(number)
        rest = process.stderr.read()
    assert process.returncode == 128 + number
    assert rest.count("stopped after step") == rest.count("stopping after this step") == 1
    assert rest.count("upge run --resume") == 1
    assert (tmp_path / "run" / "checkpoints").is_dir()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train.steps=-2"], "greater than or equal to 0"),
        pytest.param(["rollout.engine={use: recorded, run: nowhere}"], "nowhere", marks=pytest.mark.heavy),
        pytest.param(["train.check=refuse"], "train.check refuses the data", marks=pytest.mark.heavy),
    ],
    ids=["the recipe", "what a session opens", "the data"],
)
def test_wrong_input_is_told_once(tmp_path: Path, arguments: list[str], said: str) -> None:
    ended = upge_run(tiny.recipe(tmp_path), *arguments)
    assert ended.returncode == 2
    assert ended.stderr.count(said) == 1


@pytest.mark.heavy
def test_a_part_that_fails_everywhere_is_told_once(tmp_path: Path) -> None:
    ended = upge_run(masked_by(tmp_path, "raise ValueError('no such luck')"), "--allow-code")
    assert ended.returncode == 1
    assert ended.stderr.count("no such luck") == 1
    assert "another process" not in ended.stderr


@pytest.mark.heavy
def test_the_failure_of_one_is_told_and_that_of_those_it_leaves_is_not(tmp_path: Path) -> None:
    ended = upge_run(
        masked_by(tmp_path, "if os.environ['RANK'] == '1': raise ValueError('mine alone')"), "--allow-code"
    )
    assert ended.returncode == 1
    assert ended.stderr.count("mine alone") == 1
    assert "another process" not in ended.stderr


@pytest.mark.heavy
def test_a_process_that_is_killed_is_named(tmp_path: Path) -> None:
    ended = upge_run(masked_by(tmp_path, "if os.environ['RANK'] == '1': os.kill(os.getpid(), 9)"), "--allow-code")
    assert ended.returncode == 1
    assert ended.stderr.count("process 1 was ended by SIGKILL") == 1


def test_processes_that_a_launcher_has_started_launch_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert [launcher.due(processes) for processes in (None, 1, 2)] == [False, False, True]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert [launcher.due(processes) for processes in (None, 2)] == [False, False]
    with pytest.raises(InputError, match="has started 2 already"):
        launcher.due(3)
