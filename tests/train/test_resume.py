"""A run taken up again is the run that never stopped; and what can't be taken up is said."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from support import tiny
from support.processes import command

import upge
from upge.bench.resume import EQUAL, PHASES, Killer, look, measure, moments
from upge.cli.run import named
from upge.errors import InputError
from upge.runs import status
from upge.runs.reader import checkpoints
from upge.train.display import Display
from upge.train.run import train

SAVING = ("train.save_every=2", "eval.every=2")
SAME = ("metrics.jsonl", "completions.jsonl", "summary.json", "model/model.safetensors")
Run = Callable[..., Path]


class Said(Display):
    """Keeps what it would show."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def found(self, faults: Any) -> None:
        """Not of the data."""

    def tell(self, sentences: Any) -> None:
        self.lines += sentences


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tiny recipe with overrides, in a folder of its own; `resume` goes on there."""

    def start(name: str, *overrides: str, resume: bool = False, again: bool = False, said: Any = None) -> Path:
        path = tmp_path / "recipe.yaml"
        if not path.exists():
            tiny.recipe(tmp_path)
        folder = tmp_path / name
        # Of one thread, as other tests may have left this process: a command's would have more, and round otherwise.
        recipe = upge.load(path, [f"log.folder={folder}", *SAVING, "train.threads=1", *overrides])
        return train(recipe, resume=folder if resume else None, again=again, display=said)

    return start


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in SAME)


def unfinished(folder: Path, step: int) -> None:
    """Make of a finished run one that was killed."""
    (folder / "status.json").write_text(json.dumps({"state": "running", "step": step, "pid": 1, "reason": ""}))
    (folder / "summary.json").unlink()


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_killed_runs_leave_the_bytes_of_one_that_never_was(tmp_path: Path) -> None:
    table = measure(kills=3, steps=6, seed=1, recipe=str(tiny.recipe(tmp_path)), overrides=())
    assert (table.facts["kills"], table.facts["equal"]) == (3, 3)
    assert len(table.facts["phases"]) > 1
    assert [row[-1] for row in table.rows] == ["yes"] * 3


def test_the_bench_sees_runs_that_differ(run: Run, tmp_path: Path) -> None:
    run("one")
    run("other", "train.seed=1")
    killer = Killer("", (), tmp_path, 5, random.Random(0))
    assert killer.differing("one", "one") == []
    assert "completions.jsonl" in killer.differing("one", "other")
    assert killer.differing("one", "never") == list(EQUAL)


def test_the_bench_reads_where_a_run_is(run: Run) -> None:
    folder = run("run", "eval.every=3")
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert str(look(folder, 5)) == "end, after 5"
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert str(look(folder, 5)) == "evaluation, after 5"
    (folder / "checkpoints" / "step-000006.partial").mkdir()
    assert str(look(folder, 5)) == "checkpoint, after 5"
    (folder / "checkpoints" / "step-000006.partial").rmdir()
    (folder / "metrics.jsonl").write_text("".join(line for line in lines if '"step": 4' not in line)[: -len(lines[-1])])
    completions = [line for line in (folder / "completions.jsonl").read_text().splitlines(True) if "eval" not in line]
    (folder / "completions.jsonl").write_text("".join(completions))
    assert str(look(folder, 5)) == "update, step 4"
    (folder / "completions.jsonl").write_text("".join(line for line in completions if '"step": 4' not in line))
    assert str(look(folder, 5)) == "rollout, step 4"
    assert {moment.phase for moment in moments(5)} == set(PHASES)


def test_what_was_logged_after_a_checkpoint_is_cut_off_to_the_byte(run: Run) -> None:
    through, killed = run("through"), run("killed", "train.steps=4")
    unfinished(killed, 4)
    for name in ("metrics.jsonl", "timings.jsonl", "completions.jsonl"):
        with (killed / name).open("a", encoding="utf-8") as file:
            file.write('{"phase": "train", "step": 4}\n{"phase": "eval", "st')
    (killed / "checkpoints" / "step-000006.partial").mkdir()
    (killed / "trained.partial").mkdir()
    said = Said()
    run("killed", resume=True, said=said)
    assert same(through, killed)
    assert said.lines == [
        "the run ended without a message after step 4 (killed, or out of memory); "
        "resuming from the checkpoint of step 4"
    ]
    assert not list(killed.rglob("*.partial"))


def test_the_newest_checkpoints_stay(run: Run) -> None:
    assert kept(run("two", "train.save_every=1")) == ["step-000004", "step-000005"]
    assert kept(run("one", "train.save_every=1", "train.keep=1")) == ["step-000005"]


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("flip", "model-optimizer.safetensors is not what was written"),
        ("cut", "model-optimizer.safetensors has "),
        ("remove", "model-optimizer.safetensors is missing"),
        ("list", "Expecting value"),
        ("unlist", "No such file"),
        ("logs", "metrics.jsonl has "),
    ],
)
def test_of_a_damaged_checkpoint_the_one_before_is_used(run: Run, damage: str, fault: str) -> None:
    through, damaged = run("through"), run("damaged")
    unfinished(damaged, 5)
    newest = damaged / "checkpoints" / "step-000004"
    moments_ = newest / "model-optimizer.safetensors"
    if damage == "flip":
        content = bytearray(moments_.read_bytes())
        content[-1] ^= 1
        moments_.write_bytes(content)
    elif damage == "cut":
        os.truncate(moments_, 100)
    elif damage == "remove":
        moments_.unlink()
    elif damage == "list":
        (newest / "files.json").write_text("")
    elif damage == "unlist":
        (newest / "files.json").unlink()
    else:
        position = json.loads((damaged / "checkpoints" / "step-000002" / "progress.json").read_text())["logged"]
        os.truncate(damaged / "metrics.jsonl", position["metrics.jsonl"])
    said = Said()
    run("damaged", resume=True, said=said)
    assert said.lines[0].startswith(f"the checkpoint {newest} is damaged: ")
    assert fault in said.lines[0]
    assert said.lines[-1].endswith("resuming from the checkpoint of step 2")
    assert same(through, damaged)
    assert kept(damaged) == ["step-000002", "step-000004", "step-000004.damaged"]


def test_without_a_whole_checkpoint_a_run_starts_again(run: Run) -> None:
    through, killed = run("through"), run("killed")
    unfinished(killed, 5)
    for place in checkpoints(killed):
        (place / "progress.json").unlink()
    said = Said()
    run("killed", resume=True, said=said)
    assert said.lines[-1].endswith("there is no checkpoint to resume from: starting again from its beginning")
    assert same(through, killed)


NOISY = '''
import random

import numpy as np
import torch
import upge

class Noisy(upge.Mask):
    """Draws from every global generator."""

    def __call__(self, b):
        return b.ratio.new_tensor(random.gauss(0, 1) + np.random.normal() + float(torch.randn(()))).abs()
'''


def test_the_global_generators_go_on_where_they_were(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NOISY)
    path = tiny.recipe(tmp_path)
    path.write_text(path.read_text().replace('"use": "clip", "low": 0.2, "high": 0.2', '"use": "mine.py:Noisy"'))

    def noisy(name: str, *overrides: str, file: Path = path, resume: bool = False) -> Path:
        folder = tmp_path / name
        recipe = upge.load(file, [f"log.folder={folder}", *SAVING, *overrides], allow_code=True)
        return train(recipe, resume=folder if resume else None)

    through, again, killed = noisy("through"), noisy("again"), noisy("killed")
    assert same(through, again)
    unfinished(killed, 5)
    noisy("killed", file=killed / "recipe.yaml", resume=True)
    assert same(through, killed)
    assert len(list((killed / "code").iterdir())) == 1


STATEFUL = '''
import torch
import upge

class Counting:
    def initial(self):
        return {"seen": torch.zeros((), dtype=torch.float64)}

    def advance(self, b):
        return {"seen": b.state["seen"] + b.total(b.score)}

class Threshold(Counting, upge.Mask):
    """The tokens above a quantile of the step's entropies, that moves with the scores."""

    api = 1
    needs = {"entropy", "reward"}
    scope = "step"

    def __call__(self, b):
        q = 0.5 * torch.sigmoid(b.state["seen"] / 20)
        return (b.entropy >= b.quantile(b.entropy, q)).to(b.dtype)

class Some(Counting, upge.Selection):
    """A share of the tokens by chance, that grows with the scores."""

    needs = {"reward"}

    def __call__(self, b):
        return b.noise < 0.5 + 0.5 * torch.sigmoid(b.state["seen"] / 20)

class Growing(Counting, upge.Weight):
    """Grows with the scores."""

    needs = {"reward"}

    def __call__(self, b):
        return 1 + b.state["seen"] / 20
'''


def test_state_and_noise_of_every_kind_of_part_go_on_where_they_were(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STATEFUL)
    rl = tiny.HYBRID["terms"]["rl"] | {"weight": {"use": "mine.py:Growing"}}  # type: ignore[index]
    rl |= {"mask": [rl["mask"], {"use": "mine.py:Threshold"}], "select": {"use": "mine.py:Some"}}
    path = tiny.recipe(tmp_path, estimator={"terms": {"rl": rl}}, train={"steps": 5, "prompts": 8, "minibatches": 2})

    def stateful(name: str, *overrides: str, file: Path = path, resume: bool = False) -> Path:
        folder = tmp_path / name
        settings = [f"log.folder={folder}", *SAVING, "train.threads=1", *overrides]
        return train(upge.load(file, settings, allow_code=True), resume=folder if resume else None)

    through, killed = stateful("through"), stateful("killed")
    unfinished(killed, 5)
    stateful("killed", file=killed / "recipe.yaml", resume=True)
    assert same(through, killed)
    (saved,) = (killed / "checkpoints").glob("step-000004/estimator.safetensors")
    state = load_file(saved)
    assert len(state) == 3
    assert all(float(x) > 0 for x in state.values()), "a state that nothing changes would resume in any case"


def test_a_resumed_run_goes_on_as_it_began(run: Run, tmp_path: Path) -> None:
    run("run", "train.steps=2")
    unfinished(tmp_path / "run", 2)
    with pytest.raises(InputError) as caught:
        run("run", "optimizer.lr=0.5", "rollout.n=2", resume=True)
    told = str(caught.value).splitlines()
    assert told[1:3] == ["  optimizer.lr: 0.003 there, 0.5 here", "  rollout.n: 6 there, 2 here"]
    assert len(told) == 4
    run("run", "train.steps=3", "eval.every=0", "log.completions=false", "train.save_every=1", resume=True)
    assert upge.load(tmp_path / "run" / "recipe.yaml").train.steps == 3


def test_a_finished_run_goes_on_only_for_more_steps(run: Run, tmp_path: Path) -> None:
    through = run("through", "eval.every=1", "train.steps=6")
    folder = run("run", "eval.every=1", "train.steps=4")
    with pytest.raises(InputError, match=r"finished, after 4 steps; to do more: upge run --resume .* train.steps=8"):
        run("run", "eval.every=1", "train.steps=4", resume=True)
    with pytest.raises(InputError, match=r"4 steps are done already; train.steps is 3"):
        run("run", "eval.every=1", "train.steps=3", resume=True)
    run("run", "eval.every=1", "train.steps=6", resume=True)
    assert all((through / name).read_bytes() == (folder / name).read_bytes() for name in SAME)
    assert status.read(folder) == status.Status("finished", 6, os.getpid())
    run("bare", "train.save_every=0")
    with pytest.raises(InputError, match="has no checkpoint to resume from; a new run may start"):
        run("bare", "train.save_every=0", "train.steps=9", resume=True)


def test_the_same_command_again_goes_on_or_starts(run: Run, tmp_path: Path) -> None:
    assert run("run", again=True).name == "run"
    assert run("run", again=True).name == "run-2"
    unfinished(tmp_path / "run", 5)
    said = Said()
    assert run("run", said=said).name == "run-3"
    assert said.lines == [
        f"{tmp_path / 'run'} is an unfinished run of this recipe; to resume it: upge run --resume {tmp_path / 'run'}"
    ]
    assert run("run", "train.seed=3", again=True).name == "run-4"
    assert run("run", again=True).name == "run"
    assert same(tmp_path / "run", tmp_path / "run-2")
    unfinished(tmp_path / "run", 5)
    unfinished(tmp_path / "run-2", 5)
    assert run("run", again=True).name == "run-2"


def test_a_run_folder_belongs_to_one_process(run: Run, tmp_path: Path) -> None:
    run("run")
    unfinished(tmp_path / "run", 5)
    lock = status.Lock(tmp_path / "run")
    said = Said()
    with pytest.raises(InputError, match="process 1 is at work in this run folder"):
        run("run", resume=True)
    run("run", said=said)
    assert said.lines == []
    lock.release()
    run("run", resume=True)


def test_what_is_no_run_is_not_resumed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    with pytest.raises(InputError, match=r"is not the folder of a run: it has no recipe.yaml"):
        run("run", resume=True)


def test_what_is_there_but_unreadable_is_no_run_of_this_recipe(run: Run, tmp_path: Path) -> None:
    for name, text in {"run": "a: [", "run-2": "- just a list"}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(text)
    assert run("run", again=True).name == "run-3"
    with pytest.raises(InputError, match=r"recipe.yaml can't be read"):
        run("run", resume=True)


def test_a_run_is_named_by_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(InputError, match="there is no run folder"):
        named(None, [], folder)
    folder.mkdir()
    with pytest.raises(InputError, match=r"has no recipe.yaml"):
        named(None, [], folder)
    (folder / "recipe.yaml").write_text("")
    here = f'log.folder="{folder}"'
    assert named(None, [], folder) == (str(folder / "recipe.yaml"), [here])
    assert named("train.steps=9", ["eval.n=1"], folder)[1] == [here, "train.steps=9", "eval.n=1"]
    assert named("grpo", ["train.steps=9"], folder) == ("grpo", ["train.steps=9"])
    with pytest.raises(InputError, match="name a recipe"):
        named(None, [], None)


def test_the_command_resumes_by_the_folder_alone_wherever_that_is(run: Run, tmp_path: Path) -> None:
    through = run("through")
    run("run", "train.steps=4")
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    words = ["run", "--resume", str(moved), "train.steps=5"]
    finished = command(*words, folder=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert "the run finished after step 4; resuming from the checkpoint of step 4" in finished.stderr
    assert (through / "model/model.safetensors").read_bytes() == (moved / "model/model.safetensors").read_bytes()
    again = command(*words, "--continue", folder=tmp_path)
    assert (again.returncode, "give one of them" in again.stderr) == (2, True)
