"""The processes of a grid: so many at a time, each one run; a signal goes to all, a failure stops no other."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO, Literal, Protocol, cast

import torch

from upge.errors import InputError
from upge.processes import SIGNALS, Ended, ProcessGroup, how_ended, tail
from upge.recipe.schema import Recipe
from upge.sweep.axes import Cell, Standing

STOPPED = (*(128 + number for number in SIGNALS), *(-number for number in SIGNALS))
"""How a run ends that was asked to; by the signal itself where it came before anything could hear it."""
TAIL = 8
"""Lines of a failed run's log that are told."""


@dataclass
class Task:
    """A run of a grid as it goes. Attributes: standing: of the folder before. reason: why it failed."""

    cell: Cell
    standing: Standing
    state: Literal["waiting", "running", "finished", "failed", "stopped"] = "waiting"
    reason: str = ""


class Watching(Protocol):
    """What is told of a grid's progress. Attributes: every: seconds between looks while nothing happens; None: none."""

    every: float | None

    def began(self, task: Task) -> None:
        """A run has begun."""

    def ended(self, task: Task) -> None:
        """A run has ended."""

    def look(self) -> None:
        """Time has passed."""


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def jobs_for(recipes: Sequence[Recipe]) -> int:
    """How many runs go at a time: as the cores allow, given each one's threads; one on a GPU, which has no share."""
    if torch.accelerator.is_available():
        return 1
    threads = max(recipe.train.threads or cores() for recipe in recipes)
    return max(1, min(len(recipes), cores() // threads))


class Workers:
    """Runs tasks in processes."""

    def __init__(self, tasks: Sequence[Task], jobs: int, watching: Watching) -> None:
        self.tasks, self.jobs, self.watching = tasks, jobs, watching
        self._group = ProcessGroup()

    @property
    def asked(self) -> int:
        """The first signal that asked for an end, or 0."""
        return self._group.signals[0] if self._group.signals else 0

    def work(self) -> None:
        """Do every task that waits, until all have ended or a signal asks for an end; then no other run begins."""
        with self._group.forwarding():
            try:
                while self._fill():
                    self._wait()
            finally:
                self._group.send(signal.SIGTERM)  # none is left, but where something here has failed

    def _fill(self) -> bool:
        """Begin what may begin; whether there is any run at work."""
        for index, task in enumerate(self.tasks):
            if not self.asked and task.state == "waiting" and len(self._group.running) < self.jobs:
                self._begin(index, task)
        return bool(self._group.running)

    def _begin(self, index: int, task: Task) -> None:
        with _opened(task.cell) as log:
            if not self._may_begin(task, log):
                self.watching.ended(task)
                return
            command = [sys.executable, "-m", "upge", "run", *task.cell.arguments(task.standing)]
            environment = {"OMP_NUM_THREADS": str(max(1, cores() // self.jobs)), **os.environ}
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT}
            # By its place: names may repeat, where recipes of one name go to different folders.
            self._group.start(index, command, environment, **streams)
        task.state = "running"
        self.watching.began(task)

    def _may_begin(self, task: Task, log: BinaryIO) -> bool:
        """Whether the run is still to be done, and by nobody else: another grid may have begun or ended it since.

        The lock on its log is the process's too, and lasts until that has ended.
        """
        try:
            _lock(log, task.cell)
            task.standing = task.cell.standing()
        except (InputError, OSError) as error:
            task.state, task.reason = "failed", str(error)
        else:
            task.state = "finished" if task.standing == "finished" else "waiting"
        return task.state == "waiting"

    def _wait(self) -> None:
        """Take the next event: a run has ended, a signal has come, or only time has passed."""
        event = self._group.wait(self.watching.every)
        if event is None:
            self.watching.look()
        elif isinstance(event, Ended):
            self._end(self.tasks[cast("int", event.key)], event.code)

    def _end(self, task: Task, code: int) -> None:
        if self.asked and code in STOPPED:
            task.state = "stopped"
        elif code:
            task.state, task.reason = "failed", _reason(task.cell, code)
        else:
            task.state, task.reason = judged(task.cell)
        self.watching.ended(task)


def _opened(cell: Cell) -> BinaryIO:
    try:
        cell.log.parent.mkdir(parents=True, exist_ok=True)
        return cell.log.open("ab")
    except OSError as error:
        raise InputError(f"{cell.log}: can't be written: {error.strerror}") from error


def _lock(log: BinaryIO, cell: Cell) -> None:
    """Keep a run's log until it has ended, whoever holds it then. Raises InputError where another grid keeps it."""
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"{cell.folder}: another grid is at work on this run") from None
    except OSError:  # some network drives have no such lock
        return


def judged(cell: Cell) -> tuple[Literal["finished", "failed"], str]:
    """Whether the run that ended well is the one that was asked for: its recipe's file may have been edited since."""
    try:
        return ("finished", "") if cell.standing() == "finished" else ("failed", "it ended without an end to its run")
    except InputError as error:
        return "failed", f"{error}\n(was the recipe edited while the grid ran?)"


def _reason(cell: Cell, code: int) -> str:
    """How a run failed: the last lines of its log."""
    return "\n".join([f"it {how_ended(code)}", *tail(cell.log, TAIL)])
