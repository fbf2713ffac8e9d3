"""`upge run A B --seeds N`: many runs by one command, which goes on where it was stopped."""

from __future__ import annotations

import fcntl
import io
import json
import os
import re
import select
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import tiny
from support.processes import command
from typer.testing import CliRunner

import upge
from upge.cli.main import app
from upge.errors import InputError
from upge.recipe import RecipeError
from upge.runs import status
from upge.sweep import executor
from upge.sweep.axes import Cell, parse, planned, slug, standings
from upge.sweep.executor import Followed, Show, Task, jobs_for
from upge.train import resume
from upge.train.run import train

UPGE = [sys.executable, "-m", "upge", "run"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}

LATE = 900
"""Seconds after which a test would rather fail than hang."""
SHAPING = '''
import os
import signal
from pathlib import Path

import upge


class Mine(upge.Shaping):
    """Adds nothing; the first process that finds the file `kill` is killed, and each says into `fifo` that it is."""

    def __call__(self, b):
        if "TEST_KILL" in os.environ and os.path.exists(os.environ["TEST_KILL"]):
            os.remove(os.environ["TEST_KILL"])
            os.kill(os.getpid(), signal.SIGKILL)
        if fifo := os.environ.pop("TEST_FIFO", None):
            Path(fifo).write_text("x")
        return b.at_last(b.length * 0.0)
'''


def recipes(folder: Path, **train: Any) -> list[str]:
    """Two recipes on the tiny task, whose runs go below `out`; `other` has a part from a file."""
    settings = {"steps": 2, "threads": 1, **train}
    path = tiny.recipe(folder, train=settings, log={"folder": str(folder / "out" / "{name}")})
    one = json.loads(path.read_text())
    (folder / "mine.py").write_text(SHAPING)
    other = {**one, "name": "other", "estimator": {**one["estimator"], "shaping": ["mine.py:Mine"]}}
    (folder / "other.yaml").write_text(json.dumps(other))
    return [str(path), str(folder / "other.yaml")]


def trained(cell: Cell) -> Path:
    """The folder of a grid's run, done here and not by a process of its own."""
    recipe, *overrides = (word for word in cell.arguments("new") if not word.startswith("--"))
    return train(upge.load(recipe, overrides, allow_code=True))


def upge_run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return command("run", *arguments, "--allow-code", environment={**ENVIRONMENT, **environment})


@dataclass(frozen=True)
class Twice:
    """A grid of two recipes and two seeds in which one run was killed, and the same command again.

    Two of the runs were finished before: a process of its own imports for longer than a run takes.
    """

    folder: Path
    recipes: list[str]
    first: subprocess.CompletedProcess[str]
    second: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Twice:
    folder = tmp_path_factory.mktemp("grid")
    both, kill = recipes(folder), folder / "kill"
    for cell in planned(both, seeds=1, allow_code=True):
        trained(cell)
    kill.touch()
    first = upge_run(*both, "--seeds", "2", "--jobs", "2", TEST_KILL=str(kill))
    return Twice(folder, both, first, upge_run(*both, "--seeds", "2", "--jobs", "2"))


RUNS = ["tiny-s0", "other-s0", "tiny-s1", "other-s1"]


def test_a_run_that_fails_stops_no_other_and_is_told_at_the_end(twice: Twice) -> None:
    said = twice.first.stderr
    assert twice.first.returncode == 1
    failed = re.findall(r"^(other-s1) failed, its log is (.*):$", said, flags=re.MULTILINE)
    assert [(name, str(twice.folder / "out" / f"{name}.log")) for name, _ in failed] == failed
    assert len(failed) == 1
    assert "ended by SIGKILL" in said
    assert "3 of 4 runs are finished" in said
    assert re.search(r"resume the others: upge run .*recipe.yaml .*other.yaml --seeds 2 --jobs 2 --allow-code", said)
    assert (said.count("is finished already"), said.count("begins")) == (2, 2)
    assert twice.first.stdout == ""


def test_the_same_command_again_goes_on_and_compares(twice: Twice) -> None:
    said = twice.second.stderr
    assert twice.second.returncode == 0, said
    assert said.count("is finished already") == 3
    assert said.count("goes on") == 1
    assert "all 4 runs are finished: upge compare" in said
    assert sorted(path.name for path in (twice.folder / "out").iterdir() if path.is_dir()) == sorted(RUNS)
    assert all((found := status.read(twice.folder / "out" / name)) and found.state == "finished" for name in RUNS)
    assert re.search(r"test/avg@2 +tiny +2 +0\.\d+", twice.second.stdout)
    assert re.search(r"other +2 +0\.\d+ .* 2 +[+-]0\.\d+", twice.second.stdout)


@pytest.mark.parametrize("recipe", [0, 1], ids=["that nothing stopped", "that was killed"])
def test_a_run_of_a_grid_leaves_the_bytes_of_a_run_alone(twice: Twice, tmp_path: Path, recipe: int) -> None:
    torch.set_num_threads(1)
    overrides = ["train.seed=1", f"log.folder={tmp_path / 'alone'}"]
    alone = train(upge.load(twice.recipes[recipe], overrides, allow_code=True))
    for name in ("metrics.jsonl", "completions.jsonl", "model/model.safetensors"):
        grid = twice.folder / "out" / ("tiny-s1", "other-s1")[recipe]
        assert (alone / name).read_bytes() == (grid / name).read_bytes()


@pytest.mark.heavy
def test_a_signal_saves_every_run(tmp_path: Path) -> None:
    _, other = recipes(tmp_path, steps=100_000)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDWR)  # not to be at the end of it between two that write
    command = [*UPGE, other, "--seeds", "3", "--jobs", "2", "--allow-code"]
    environment = {**ENVIRONMENT, "TEST_FIFO": str(fifo)}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        for _ in range(2):  # two runs are in their first step
            assert select.select([reader], [], [], LATE)[0], "no run has come to its first step"
            os.read(reader, 1)
        process.send_signal(signal.SIGTERM)
        out, said = process.communicate()
    os.close(reader)
    assert process.returncode == 128 + signal.SIGTERM
    assert "0 of 3 runs are finished; to resume the others: upge run" in said
    assert said.count("stopped") == 2
    assert out == ""
    for name in ("other-s0", "other-s1"):
        found = status.read(tmp_path / "out" / name)
        assert found is not None
        assert found.state == "stopped"
        assert list((tmp_path / "out" / name / "checkpoints").iterdir())
    assert not (tmp_path / "out" / "other-s2").exists()


def test_a_live_table_has_a_row_a_run(twice: Twice) -> None:
    cells = planned(twice.recipes, seeds=2, allow_code=True)
    tasks = [Task(cell, "finished", "finished") for cell in cells]
    for height in (40, 8):
        console = Console(file=io.StringIO(), force_terminal=True, width=120, height=height)
        with Show(tasks, console) as show:
            show.began(tasks[0])
        shown = console.file.getvalue()  # type: ignore[attr-defined]
        assert all(re.search(rf"{name} +finished +2/2 +0\.\d+ +test/avg@2 0\.\d+", shown) for name in RUNS)


# What is refused before any run begins.


def refused(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["run", *arguments])
    assert isinstance(result.exception, (InputError, RecipeError)), result.output
    return str(result.exception)


def test_wrong_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = recipes(tmp_path)
    assert "name a recipe" in refused("--seeds", "2")
    assert "--resume is for a single run" in refused(one, other, "--resume", str(tmp_path))
    assert "--continue is for a single run" in refused(one, "--seeds", "2", "--continue")
    assert "--jobs is the number" in refused(one, "--seeds", "2", "--processes", "2")
    assert "varied twice" in refused(one, "--seeds", "2", "--vary", "train.seed=1,2")
    assert "an override needs a '='" in refused(one, "train.steps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "without a launcher" in refused(one, "--seeds", "2")


def test_every_recipe_and_value_is_checked_before_the_first_run(tmp_path: Path) -> None:
    one, other = recipes(tmp_path)
    said = refused(one, other, "--vary", "optimizer.lr=0.1,fast", "--vary", "train.steps=1,-1", "--allow-code")
    assert "2 problems" in said
    assert "fast" in said
    assert "-1" in said
    assert not (tmp_path / "out").exists()


def test_a_folder_of_something_else_is_refused(twice: Twice) -> None:
    again = [*twice.recipes, "--seeds", "2", "--allow-code"]
    said = refused(*again, "train.steps=3")
    assert said.count("train.steps: 2 there, 3 here") == 4
    lock = status.Lock(twice.folder / "out" / "tiny-s0")
    assert "a process is at work" in refused(*again)
    lock.release()
    (twice.folder / "out" / "tiny-s2").mkdir()
    (twice.folder / "out" / "tiny-s2" / "mine.txt").touch()
    assert "tiny-s2 is there and is no run folder" in refused(twice.recipes[0], "--seeds", "3")


def test_a_run_of_a_recipe_that_was_edited_meanwhile_is_not_the_one_asked_for(twice: Twice) -> None:
    asked, other = (planned(twice.recipes[:1], [f"optimizer.lr={lr}"], seeds=1)[0] for lr in (0.003, 0.1))
    assert executor.judged(asked) == ("finished", "")
    state, reason = executor.judged(other)
    assert state == "failed"
    assert "optimizer.lr: 0.003 there, 0.1 here" in reason


def test_a_dry_run_lists_what_there_is_to_do(twice: Twice) -> None:
    result = CliRunner().invoke(app, ["run", twice.recipes[1], "--vary", "train.seed=1,7", "--dry-run", "--allow-code"])
    assert result.exit_code == 0, result.output
    out = twice.folder / "out"
    assert result.stdout.splitlines() == [f"finished\t{out / 'other-s1'}", f"new\t{out / 'other-s7'}"]


def waiting(cell: Cell) -> Task:
    """A run whose folder nobody had begun when the grid looked."""
    return Task(cell, "new")


def worked(*tasks: Task) -> list[tuple[str, str]]:
    """State and reason of each task after a grid of them."""
    executor.Workers(tasks, 2, Show(tasks, Console(file=io.StringIO()))).work()
    return [(task.state, task.reason) for task in tasks]


@pytest.mark.heavy
def test_recipes_of_one_name_in_different_places_are_two_runs(tmp_path: Path) -> None:
    one, _ = recipes(tmp_path)
    cells = [planned([one], [f"log.folder={tmp_path / place}"], seeds=1)[0] for place in ("here", "there")]
    assert cells[0].name == cells[1].name
    assert worked(*map(waiting, cells)) == [("finished", "")] * 2
    assert [cell.standing() for cell in cells] == ["finished"] * 2


def test_a_run_that_another_grid_is_at_work_on_is_left_to_it(tmp_path: Path) -> None:
    one, _ = recipes(tmp_path)
    [cell] = planned([one], seeds=1)
    cell.log.parent.mkdir(parents=True)
    with cell.log.open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        [(state, reason)] = worked(waiting(cell))
    assert (state, reason) == ("failed", f"{cell.folder}: another grid is at work on this run")
    assert not cell.folder.exists()


def test_a_run_that_another_grid_has_ended_meanwhile_is_not_done_again(tmp_path: Path) -> None:
    one, _ = recipes(tmp_path)
    [cell] = planned([one], seeds=1)
    before = (trained(cell) / "metrics.jsonl").stat().st_mtime_ns
    assert worked(waiting(cell)) == [("finished", "")]
    assert (cell.folder / "metrics.jsonl").stat().st_mtime_ns == before
    assert sorted(path.name for path in cell.folder.parent.iterdir()) == ["tiny-s0", "tiny-s0.log"]


def test_a_finished_run_is_finished_whatever_became_of_its_status(twice: Twice, tmp_path: Path) -> None:
    [cell] = planned(twice.recipes[:1], seeds=1)
    said = (cell.folder / status.FILE).read_text()
    try:
        for lost in ("", said[:20]):
            (cell.folder / status.FILE).write_text(lost)
            assert cell.standing() == "finished"
            with pytest.raises(InputError, match="the run is finished, after 2 steps"):
                resume.choose(cell.recipe, cell.folder)
        (cell.folder / status.FILE).unlink()
        assert cell.standing() == "finished"
    finally:
        (cell.folder / status.FILE).write_text(said)


# The plan.


def test_the_seeds_go_last_and_folders_say_what_is_varied(tmp_path: Path) -> None:
    both = recipes(tmp_path)
    vary = [parse("optimizer.lr=1e-3,{start: 1e-2, end: 0, steps: 2}")]
    cells = planned(both, ["train.steps=1"], vary, 2, allow_code=True)
    first, second = "optimizer.lr=1e-3", "optimizer.lr=start_1e-2_end_0_steps_2"
    names = [f"{name}-{lr}-s{seed}" for seed in (0, 1) for lr in (first, second) for name in ("tiny", "other")]
    assert [cell.name for cell in cells] == names
    assert [cell.recipe.train.seed for cell in cells] == [0] * 4 + [1] * 4
    assert cells[0].folder == tmp_path / "out" / names[0]
    assert standings(cells) == ["new"] * 8
    assert cells[0].arguments("unfinished")[-2:] == ["--resume", str(cells[0].folder)]
    assert upge.load(both[0], cells[2].arguments("new")[1:-2]).optimizer == cells[2].recipe.optimizer
    [cell] = planned(both[:1], [f"log.folder={tmp_path / 'study'}", "train.seed=4"])
    assert cell.folder == tmp_path / "study" / "tiny-s4"


def test_two_runs_are_two(tmp_path: Path) -> None:
    one, _ = recipes(tmp_path)
    with pytest.raises(InputError, match=r"would be the same:\n.*lr=1e-3.*\n.*lr=0.001"):
        planned([one], varied=[parse("optimizer.lr=1e-3,0.001")], seeds=2)


def test_two_runs_have_two_folders(tmp_path: Path) -> None:
    one, _ = recipes(tmp_path)
    for vary in ("optimizer.lr=1e-3,1e-3", "log.trackers=[],['']"):
        with pytest.raises((InputError, RecipeError)):
            planned([one], varied=[parse(vary)])
    with pytest.raises(InputError, match="would have the folder"):
        planned([one, one], seeds=1)
    with pytest.raises(InputError, match="too long"):
        planned([one], varied=[parse(f"about={'x' * 200}")])


@given(
    st.lists(st.sampled_from(["1e-5", "null", "[1, 2]", "{use: clip, low: 0.2}", "'a, b'", "a b", "-3"]), min_size=1)
)
def test_values_are_what_stands_between_commas(values: list[str]) -> None:
    found = parse(f"a.b={', '.join(values)}")
    assert (found.key, found.values) == ("a.b", tuple(values))
    assert found == parse(f"a.b={','.join(values)}")
    assert all(re.fullmatch(r"[\w.+=-]*", slug(value)) for value in found.values)


@pytest.mark.parametrize("text", ["a", "=1", "a=", "a=1,,2", "a=[1", "a=1],[2", "a={b", "a=# 1", "a=1,# 2", "a==,####"])
def test_what_is_no_list_of_values(text: str) -> None:
    with pytest.raises(InputError, match="--vary"):
        parse(text)


@pytest.mark.parametrize(("threads", "jobs"), [(1, 3), (2, 2), (4, 1), (9, 1), (None, 1)])
def test_as_many_runs_as_the_cores_allow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int | None, jobs: int
) -> None:
    monkeypatch.setattr(executor, "cores", lambda: 4)
    recipe = upge.load(tiny.recipe(tmp_path, train={"threads": threads}))
    assert jobs_for([recipe] * 3) == jobs


def test_the_newest_numbers_are_followed_through_a_file_that_is_cut_back(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    followed = Followed(file)
    followed.read()
    assert followed.numbers() == ("", "")
    lines = [json.dumps({"phase": "train", "step": step, "reward": step / 10}) + "\n" for step in range(6)]
    file.write_text("".join(lines[:3]) + lines[3][:9])
    followed.read()
    assert followed.numbers() == ("0.200", "")
    file.write_text("".join(lines[:2]))
    followed.read()
    assert followed.numbers() == ("0.100", "")
    file.write_text(lines[0] + json.dumps({"phase": "eval", "step": 1, "test/avg@2": 0.5}) + "\n" + "".join(lines[1:]))
    followed.read()
    followed.read()
    assert followed.numbers() == ("0.500", "test/avg@2 0.500")
