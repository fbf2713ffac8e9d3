"""What tests of `upge eval` share: the command, what it says, what it leaves, and responses to give it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support import tiny
from typer.testing import CliRunner, Result

import upge
from upge.cli.app import is_about_input
from upge.cli.main import app
from upge.train.run import train

FILES = ("completions.jsonl", "problems.jsonl", "summary.json", "recipe.yaml")
UPGE = str(Path(sys.executable).parent / "upge")


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def done(*arguments: str | Path) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    return result


def refused(*arguments: str | Path) -> str:
    """What is said of wrong input, which the command turns into exit code 2."""
    result = call(*arguments)
    assert isinstance(result.exception, Exception), result.output
    assert is_about_input(result.exception), repr(result.exception)
    return str(result.exception)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def same(one: Path, other: Path, *names: str) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def given_completions(texts: dict[str, list[str]], **more: Any) -> Path:
    file = Path("given.jsonl")
    said = [{"problem": problem, "text": text, **more} for problem, its in texts.items() for text in its]
    file.write_text("".join(json.dumps(each) + "\n" for each in said))
    return file


def measured_run(folder: Path) -> Path:
    """A run that took no step, so that its measurement is of the model that it saved."""
    return train(upge.load(tiny.recipe(folder), ["train.steps=0", "eval.n=3", "eval.pass_at=[1,3]"]))
