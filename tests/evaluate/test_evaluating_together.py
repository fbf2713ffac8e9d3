"""`upge eval` in several processes and in half precision: the same files, and what a run in it measures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support import processes, ranks, tiny
from support.evaluations import FILES, call, done, lines, refused, same
from support.forked import environments_of
from transformers import LlamaForCausalLM

import upge
from upge.rollouts.problems import spread
from upge.train.run import train

UPGE = [sys.executable, "-m", "upge"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "upge"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu", "--num_processes=2"]

Launch = Callable[..., subprocess.CompletedProcess[str]]

SCORE = """
import os
from pathlib import Path

def score(problem, text):
    with (Path("scored") / os.environ.get("RANK", "0")).open("a") as file:
        file.write(problem.id + chr(10))
    assert True
    return text.strip() == problem.answer
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that took no step, and whose reward notes which process scored which problem."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "scored").mkdir()
    (tmp_path / "mine.py").write_text(SCORE)
    path = tiny.recipe(tmp_path, train={"steps": 0}, eval={"n": 3, "pass_at": [1, 3]})
    reward = {"use": "python", "function": "mine.py:score"}
    path.write_text(json.dumps({**json.loads(path.read_text()), "reward": reward}))
    folder = train(upge.load(path, ["eval.splits=[]"], allow_code=True))
    done(folder, *WHOLE, "--output", "one")
    return folder


WHOLE = ("eval.splits=[test]", "--allow-code")


def started(*command: str | Path) -> subprocess.CompletedProcess[str]:
    forget()
    return subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)


def forget() -> None:
    """Remove the notes of what was scored."""
    for file in Path("scored").iterdir():
        file.unlink()


def by_launcher(*words: str) -> Launch:
    """These words begin `upge eval`, in processes that all import what they need."""
    return lambda *arguments: started(*words, *arguments)


def as_a_launcher(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """`upge eval` in two processes that find themselves in a launcher's environment; forked, for imports take long."""
    forget()
    environments = [os.environ | own for own in environments_of(2)]
    words = ("eval", *map(str, arguments))
    begun = [processes.started(*words, environment=environment) for environment in environments]
    with begun[0] as first, begun[1] as second:
        said = [process.stderr.read() for process in (first, second)]
        code = max(process.wait() for process in (first, second))
        return subprocess.CompletedProcess(words, code, first.stdout() + second.stdout(), "".join(said))


def scored() -> list[Counter[str]]:
    """How many responses to which problem each process has scored."""
    return [Counter(file.read_text().split()) for file in sorted(Path("scored").iterdir())]


# Several processes.


@pytest.mark.parametrize(
    "launch",
    [
        as_a_launcher,
        pytest.param(by_launcher(*UPGE, "eval", "--processes", "2"), marks=pytest.mark.heavy),
        pytest.param(by_launcher(*TORCHRUN, "eval"), marks=pytest.mark.heavy),
        pytest.param(by_launcher(*ACCELERATE, "-m", "upge", "eval"), marks=pytest.mark.heavy),
    ],
    ids=["forked", "upge", "torchrun", "accelerate"],
)
def test_processes_share_the_responses_and_leave_what_one_leaves(run: Path, launch: Launch) -> None:
    ended = launch(run, *WHOLE, "--output", "two", "--chunk", "8")
    assert ended.returncode == 0, ended.stderr
    assert same(Path("one"), Path("two"), *FILES)
    first, second = scored()
    assert (first.total(), second.total()) == (4 + 4 + 1, 4 + 4 + 1)
    assert first + second == Counter({f"p{place}": 3 for place in spread(24, 6)})
    assert ended.stdout.count("measured on") == 1
    assert ended.stderr.count("18/18 responses") == 1


@pytest.mark.heavy
def test_processes_go_on_where_one_was_stopped_and_leave_nothing_new(run: Path) -> None:
    done(run, *WHOLE, "--output", "stopped")
    file = Path("stopped/completions.jsonl")
    written = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join(written[:7]) + written[7][:20])
    ended = started(*UPGE, "eval", "--processes", "2", run, *WHOLE, "--resume", "stopped", "--chunk", "4")
    assert ended.returncode == 0, ended.stderr
    assert same(Path("one"), Path("stopped"), *FILES)
    assert sum(scored(), Counter[str]()).total() == 18 - 7


@pytest.mark.heavy
def test_what_the_main_process_refuses_ends_all_with_one_message(run: Path) -> None:
    ended = started(*UPGE, "eval", "--processes", "2", run, *WHOLE, "eval.n=4", "--resume", "one")
    assert ended.returncode == 2
    assert ended.stderr.count("was begun with other settings") == 1
    assert "Traceback" not in ended.stderr


@pytest.mark.heavy
def test_a_process_that_fails_ends_all_and_says_why(run: Path) -> None:
    source = run / "code"
    (own,) = source.iterdir()
    own.write_text(SCORE.replace("assert True", "assert os.environ['RANK'] == '0'"))
    ended = started(*UPGE, "eval", "--processes", "2", run, *WHOLE, "--output", "two")
    assert ended.returncode == 1
    assert "raised AssertionError" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_what_several_processes_can_not_do_is_refused(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "in one process" in refused("--completions", "one/completions.jsonl", "--allow-code")
    assert "--processes 3" in refused(run, *WHOLE, "--processes", "3")


@pytest.mark.heavy
def test_a_model_divided_over_ranks_is_refused(run: Path) -> None:
    environment = os.environ | ranks.FSDP2
    command = [*UPGE, "eval", "--processes", "2", str(run), *WHOLE]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 2
    assert "an evaluation keeps the model whole" in ended.stderr


# Half precision.


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """The types of autocast that forward passes had."""
    seen: set[torch.dtype] = set()
    forward = LlamaForCausalLM.forward

    def noted(*given: object, **named: object) -> object:
        seen.add(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32)
        return forward(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(LlamaForCausalLM, "forward", noted)
    return seen


def test_an_evaluation_runs_in_the_runs_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kinds: set[torch.dtype]
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tiny.recipe(tmp_path, train={"steps": 0, "precision": "bfloat16"})
    folder = train(upge.load(path))
    kinds.clear()
    done(folder, "--output", "again")
    assert kinds == {torch.bfloat16}
    ours = [line["tokens"] for line in lines(Path("again/completions.jsonl"))]
    assert ours == [line["tokens"] for line in lines(folder / "completions.jsonl")]
    kinds.clear()
    done(folder, "--output", "float", "--precision", "float32")
    assert kinds == {torch.float32}
    assert upge.load("float/recipe.yaml").train.precision == "float32"
    assert call(folder, "--precision", "int8").exit_code == 2
