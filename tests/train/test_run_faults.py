"""What befalls a run: signals, disks, engines, memory, numbers. Each is said, and leaves what a run resumes from."""

from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from support import tiny
from support.processes import command, started

import upge
from upge.errors import ModelError, RunError, causes
from upge.estimator.part_errors import PartError
from upge.runs import atomic_files, status
from upge.runs.failures import explain
from upge.runs.reader import checkpoints
from upge.runs.signals import Stop, Stopped
from upge.train import random_state
from upge.train.display import Display
from upge.train.run import train

SAVING = ("train.save_every=2", "eval.every=3")
SAME = ("metrics.jsonl", "completions.jsonl", "summary.json", "model/model.safetensors")
UPGE = str(Path(sys.executable).parent / "upge")
Run = Callable[..., Path]


class When(Display):
    """Does something once so many steps are done."""

    def __init__(self, done: int, action: Callable[[], Any]) -> None:
        super().__init__()
        self.done, self.action = done, action

    def step(self, metrics: Any, seconds: Any) -> None:
        if metrics["step"] + 1 == self.done:
            self.action()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tiny recipe with overrides, in a folder of its own; `resume` goes on there."""
    path = tiny.recipe(tmp_path)

    def start(name: str, *overrides: str, resume: bool = False, display: Display | None = None) -> Path:
        folder = tmp_path / name
        recipe = upge.load(path, [f"log.folder={folder}", *SAVING, *overrides])
        return train(recipe, resume=folder if resume else None, display=display)

    return start


@pytest.fixture
def through(run: Run) -> Path:
    """A run that nothing befell."""
    return run("through")


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in SAME)


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", []))


def said(folder: Path) -> tuple[str, int]:
    found = status.read(folder)
    assert found is not None
    return found.state, found.step


# Signals.


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("done", [1, 3, 5])  # 3 is to be measured, and 5 is the end: the measurement is made afterwards
def test_a_signal_ends_a_run_after_its_step(
    run: Run, through: Path, tmp_path: Path, number: int, code: int, done: int
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match=f"stopped after step {done} of 5") as caught:
        run("run", display=When(done, lambda: os.kill(os.getpid(), number)))
    folder = tmp_path / "run"
    assert caught.value.code == code
    assert notes(caught.value) == f"to resume from step-{done:06d}: upge run --resume {folder}"
    assert said(folder) == ("stopped", done)
    assert signal.getsignal(number) is before
    run("run", resume=True)
    assert same(through, folder)
    assert said(folder) == ("finished", 5)


def test_a_second_signal_ends_it_at_once(run: Run, through: Path, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="ended at once") as caught:
        run("run", display=When(3, twice))
    assert caught.value.code == 130
    assert notes(caught.value) == f"to resume from step-000002: upge run --resume {tmp_path / 'run'}"
    run("run", resume=True)
    assert same(through, tmp_path / "run")


def test_under_torchrun_a_second_signal_is_the_first_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    stop = Stop()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.number == signal.SIGTERM


def test_the_command_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    with started("run", str(tmp_path / "recipe.yaml"), "eval.splits=[]", "train.steps=100000") as process:
        for line in process.stderr:
            if line.startswith("step 1/"):
                process.send_signal(signal.SIGTERM)
                break
        told = process.stderr.read()
        assert process.wait() == 143
    assert f"upge run --resume {tmp_path / 'run'}" in told
    assert "Traceback" not in told
    assert checkpoints(tmp_path / "run")


# The disk.


def test_a_log_without_room(run: Run, through: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"

    def fill() -> None:
        (folder / "metrics.jsonl").rename(folder / "kept")
        (folder / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(
        RunError, match=r"no room on the disk while writing .*/metrics.jsonl: .* MiB are free"
    ) as caught:
        run("run", display=When(3, fill))
    assert notes(caught.value).startswith("to resume from step-000002: ")
    (folder / "kept").replace(folder / "metrics.jsonl")
    run("run", resume=True)
    assert same(through, folder)


@pytest.fixture
def limit() -> Iterator[Callable[[int], None]]:
    """Bounds the size of a file that may be written, for this test."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_without_room(run: Run, tmp_path: Path, limit: Callable[[int], None]) -> None:
    bare = ("log.completions=false", "eval.splits=[]")
    whole, folder = run("whole", *bare), tmp_path / "run"

    def fill() -> None:
        weights = folder / "checkpoints" / "step-000002" / "model" / "model.safetensors"
        limit(weights.stat().st_size - 1)

    with pytest.raises(RunError, match=r"no room on the disk while writing .*/step-000004: .* MiB are free") as caught:
        run("run", *bare, display=When(3, fill))
    assert notes(caught.value).startswith("to resume from step-000002: ")
    assert said(folder) == ("failed", 4)
    limit(resource.RLIM_INFINITY)
    run("run", *bare, resume=True)
    assert (whole / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
    assert (whole / SAME[-1]).read_bytes() == (folder / SAME[-1]).read_bytes()


def test_what_safetensors_says_of_a_full_disk_is_understood(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as caught, atomic_files.writing(tmp_path / "file"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))
    with pytest.raises(SafetensorError), atomic_files.writing(tmp_path):
        raise SafetensorError("another fault")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    atomic_files.write(file, "old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=str(file)):
        atomic_files.write(file, "new")
    assert file.read_text() == "old"


def test_a_run_folder_that_vanishes(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"run folder .*/run is gone"):
        run("run", display=When(2, lambda: shutil.rmtree(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_that_vanishes_while_it_is_written(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def removing(tensors: Any, path: Path) -> None:
        del tensors
        shutil.rmtree(path.parent)
        raise SafetensorError("Error while serializing: I/O error: No such file or directory (os error 2)")

    monkeypatch.setattr("upge.train.checkpoint.save_file", removing)
    with pytest.raises(RunError, match=r"step-00000\d is gone while it is used: another program removes"):
        run("run")


# Parts.


@pytest.mark.parametrize("method", ["sample", "sync"])
def test_an_engine_that_dies(run: Run, through: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    from upge_parts.engines.generating import Generating

    def dies(*_: Any) -> None:
        raise ConnectionResetError("the server hung up")

    folder = through.parent / "run"
    with monkeypatch.context() as patched:
        kill = When(3, lambda: patched.setattr(Generating, method, dies))
        with pytest.raises(
            PartError, match=r"Transformers \(rollout.engine\) .*raised ConnectionResetError: the server"
        ) as caught:
            run("run", display=kill)
    assert notes(caught.value) == f"to resume from step-000002: upge run --resume {folder}"
    assert said(folder)[0] == "failed"
    run("run", resume=True)
    assert same(through, folder)


RAISING = '''
import contextlib
import os
import upge

class Raising(upge.Reward):
    """Fails at the fifth question, in the process of this rank."""

    rank: str = "0"

    @contextlib.contextmanager
    def open(self, context):
        asked = []

        class Session:
            def score(session, pairs):
                asked.append(pairs)
                if len(asked) == 5 and os.environ.get("RANK", "0") == self.rank:
                    raise KeyError("no such key")
                return [0.0] * len(pairs)

        yield Session()
'''


def reward(tmp_path: Path, rank: int) -> Path:
    """A recipe whose reward raises in the process of one rank."""
    (tmp_path / "mine.py").write_text(RAISING)
    path = tiny.recipe(tmp_path)
    whole = json.loads(path.read_text()) | {"reward": {"use": "mine.py:Raising", "rank": str(rank)}}
    path.write_text(json.dumps(whole))
    return path


def test_a_reward_that_raises_is_named_with_its_place_and_how_to_go_on(tmp_path: Path) -> None:
    finished = command("run", str(reward(tmp_path, 0)), "--allow-code", "train.save_every=1")
    assert finished.returncode == 1
    assert "Raising (reward) raised KeyError: 'no such key'" in finished.stderr
    assert "recipe.yaml:1:" in finished.stderr
    assert f"upge run --resume {tmp_path / 'run'} --allow-code" in finished.stderr
    assert "Traceback" not in finished.stderr


# Numbers.


def norms(monkeypatch: pytest.MonkeyPatch, *values: float) -> None:
    """The norms of the gradients to come."""
    coming = iter(values)
    monkeypatch.setattr("accelerate.Accelerator.clip_grad_norm_", lambda *_: torch.tensor(next(coming)))


def test_a_gradient_that_stays_unusable_ends_the_run(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    norms(monkeypatch, 1.0, nan, inf, nan)
    with pytest.raises(FloatingPointError, match="step 3: the gradient was not finite 3 times in a row") as caught:
        run("run", "train.not_finite_limit=3")
    assert notes(caught.value).startswith("to resume from step-000002: ")
    norms(monkeypatch, nan, nan)  # one more is told by the checkpoint
    with pytest.raises(FloatingPointError, match="step 3: the gradient was not finite 3 times"):
        run("run", "train.not_finite_limit=3", resume=True)


def test_gradients_that_recover_and_runs_without_a_limit_go_on(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nan = float("nan")
    norms(monkeypatch, nan, nan, 1.0, nan, nan)
    run("recovers", "train.not_finite_limit=3")
    norms(monkeypatch, *[nan] * 5)
    run("never", "train.not_finite_limit=0")


# Memory.


def exhausted() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def raises(error: Exception) -> Callable[[], None]:
    def raising() -> None:
        raise error

    return raising


@pytest.mark.parametrize(
    "fails", [exhausted, raises(torch.OutOfMemoryError("CUDA out of memory.")), raises(MemoryError())]
)
@pytest.mark.parametrize("place", ["upge.model.Policy.log_probs", "upge_parts.engines.generating.Generating.sample"])
def test_without_memory_the_message_says_what_to_lower(
    run: Run, monkeypatch: pytest.MonkeyPatch, fails: Callable[[], None], place: str
) -> None:
    monkeypatch.setattr(place, lambda *_, **__: fails())
    with pytest.raises(RunError, match="out of memory: ") as caught:
        run("run")
    assert str(caught.value).splitlines()[-1] == (
        "lower train.micro_batch_tokens (now 16384), rollout.engine.batch_size (now 256); "
        "or set model.gradient_checkpointing: true"
    )


def test_other_errors_are_not_explained_away(tmp_path: Path) -> None:
    recipe = upge.load(tiny.recipe(tmp_path))
    for error in (RuntimeError("a fault"), FileNotFoundError(errno.ENOENT, "no", "x"), SafetensorError("broken")):
        assert explain(error, recipe, tmp_path) is None
    assert explain(RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), recipe, tmp_path)


def test_an_error_that_is_its_own_cause_is_met_once() -> None:
    first, last = ValueError("first"), ValueError("last")
    last.__cause__, first.__cause__ = first, last
    assert list(causes(last)) == [last, first]
    with pytest.raises(ValueError, match="first") as caught:
        raise first from first
    assert list(causes(caught.value)) == [first]


def test_a_reference_that_cannot_be_opened_ends_the_run_with_its_message(run: Run, tmp_path: Path) -> None:
    reference = run("first", "train.steps=1", "eval.splits=[]") / "model"
    (reference / "model.safetensors").write_bytes(b"noise")
    with pytest.raises(ModelError, match=f"^{reference}: ") as caught:
        run("run", "estimator.shaping={use: kl_in_reward, coefficient: 0.5}", f"reference.path={reference}")
    assert caught.value.__cause__ is not caught.value


def test_the_generators_are_saved_whole() -> None:
    random_state.seed(3, 0)
    random.gauss(0, 1), np.random.normal(), torch.randn(3)
    before = random_state.state()
    drawn = [(random.gauss(0, 1), np.random.normal(), torch.randn(2).tolist()) for _ in range(3)]
    random_state.restore(before)
    assert [(random.gauss(0, 1), np.random.normal(), torch.randn(2).tolist()) for _ in range(3)] == drawn


# Several processes.


def torchrun(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python", UPGE, *arguments]


@pytest.mark.heavy
def test_two_processes_stop_at_one_step_and_go_on_from_there(tmp_path: Path) -> None:
    path = tiny.recipe(tmp_path)
    settings = ("train.steps=30", "eval.every=7")
    whole = torchrun("run", str(path), *settings, f"log.folder={tmp_path / 'whole'}")
    assert subprocess.run(whole, capture_output=True, check=False).returncode == 0
    with subprocess.Popen(torchrun("run", str(path), *settings), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("step 1/"):
                process.send_signal(signal.SIGTERM)
                break
        told = process.stderr.read()
    folder = tmp_path / "run"
    assert process.returncode != 0
    assert f"upge run --resume {folder}" in told
    assert said(folder)[0] == "stopped"
    resumed = subprocess.run(torchrun("run", "--resume", str(folder)), capture_output=True, text=True, check=False)
    assert resumed.returncode == 0, resumed.stderr
    assert same(tmp_path / "whole", folder)


@pytest.mark.heavy
def test_a_rank_that_fails_ends_all(tmp_path: Path) -> None:
    path = reward(tmp_path, 1)
    finished = subprocess.run(torchrun("run", str(path), "--allow-code"), capture_output=True, text=True, check=False)
    assert finished.returncode == 1
    assert "Raising (reward) raised KeyError" in finished.stderr
