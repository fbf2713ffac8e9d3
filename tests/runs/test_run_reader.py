"""The reader of a run folder: each file is opened once, and what can't be read is an error with its place."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from upge.cli.main import app
from upge.errors import InputError
from upge.runs.reader import RunReader
from upge.sweep.executor import Followed

LOGS = ("metrics.jsonl", "timings.jsonl", "completions.jsonl", "credit.jsonl")
RESPONSE = {"stream": "eval/test", "step": 0, "problem": "p", "sample": 0, "reward": 1.0, "truncated": False} | {
    "text": "a",
    "tokens": [3, 1],
}


def run_folder(folder: Path) -> Path:
    """What a run leaves, without a model."""
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({"recipe": {"name": "made"}, "seed": 3}))
    (folder / "status.json").write_text(json.dumps({"state": "finished", "step": 2, "pid": 1, "reason": ""}))
    steps = [{"phase": "train", "step": step, "reward": 0.5} for step in range(2)]
    measured = [{"phase": "eval", "step": step, "test/avg@1": 1.0} for step in (0, 2)]
    write(folder / "metrics.jsonl", measured[0], *steps, measured[1])
    write(folder / "completions.jsonl", RESPONSE, RESPONSE | {"step": 2, "text": "ß" * 9})
    return folder


def write(file: Path, *lines: Any) -> None:
    """Write lines of JSON."""
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file has been opened, by its name."""
    counts: Counter[str] = Counter()
    original = Path.open

    def counting(path: Path, *words: Any, **settings: Any) -> Any:
        counts[path.name] += 1
        return original(path, *words, **settings)

    monkeypatch.setattr(Path, "open", counting)  # read_text and read_bytes call it too
    return counts


@pytest.mark.parametrize("command", ["compare", "report"])
def test_a_command_parses_each_log_once(command: str, tmp_path: Path, opened: Counter[str]) -> None:
    from typer.testing import CliRunner

    run = run_folder(tmp_path / "run")
    opened.clear()
    result = CliRunner().invoke(app, [command, str(run)])
    assert result.exit_code == 0, result.output
    assert opened["metrics.jsonl"] == 1
    # A page's texts are read at their offsets, once it is known which are shown.
    assert opened["completions.jsonl"] == (2 if command == "report" else 1)
    assert max(opened[name] for name in LOGS[:2]) == 1


def test_what_is_asked_for_again_is_not_read_again(tmp_path: Path, opened: Counter[str]) -> None:
    run = RunReader(run_folder(tmp_path / "run"))
    opened.clear()
    for _ in range(3):
        assert (run.name, run.seed, run.end, len(run.metrics), len(run.responses)) == ("made", 3, 2, 4, 2)
        assert run.status is not None
    assert opened["manifest.json"] == opened["metrics.jsonl"] == opened["completions.jsonl"] == 1


def test_a_response_has_its_text_by_its_place_in_the_file(tmp_path: Path) -> None:
    run = RunReader(run_folder(tmp_path / "run"))
    assert [line["text"] for line in run.texts(reversed(run.responses))] == ["ß" * 9, "a"]


@pytest.mark.parametrize(
    ("name", "line", "says"),
    [
        ("metrics.jsonl", b"\xff", "metrics.jsonl:1: can't be read"),
        ("timings.jsonl", b"[]", "timings.jsonl:1: can't be read: not a JSON object"),
        ("completions.jsonl", b"\xff", "completions.jsonl:1: can't be read"),
        ("completions.jsonl", json.dumps(RESPONSE | {"step": -1}).encode(), "'step' is no number from 0"),
        ("completions.jsonl", json.dumps(RESPONSE | {"reward": True}).encode(), "has no 'reward', or another kind"),
        ("credit.jsonl", b"\xff", "credit.jsonl:1: can't be read"),
        ("credit.jsonl", b"{}", "credit.jsonl:1: is no trajectory"),
    ],
)
def test_a_line_that_cannot_be_read_is_an_error_with_its_place(
    name: str, line: bytes, says: str, tmp_path: Path
) -> None:
    folder = run_folder(tmp_path / "run")
    (folder / name).write_bytes(line + b"\n")
    run = RunReader(folder)
    with pytest.raises(InputError, match=says):
        _ = run.metrics, run.timings, run.responses, run.credit


def test_a_cut_off_line_of_any_log_is_left_out(tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "run")
    before = RunReader(folder)
    counts = len(before.metrics), len(before.responses)
    for name in LOGS:
        with (folder / name).open("ab") as file:
            file.write(b'{"phase": "\xc3')  # also inside a character
    run = RunReader(folder)
    assert (len(run.metrics), len(run.responses), run.timings, run.credit) == (*counts, (), ())


@pytest.mark.parametrize("line", ["12", "[]", "{}", '{"phase": "train"}'])
def test_a_log_that_is_followed_may_hold_anything(line: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + "\n")
    followed = Followed(tmp_path / "metrics.jsonl")
    followed.read()
    assert followed.newest == {}
