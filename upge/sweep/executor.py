"""The processes of a grid: so many at a time, each one run; a signal goes to all, a failure stops no other.

`Show` shows on stderr how far they are: a live table with a row a run, or a line whenever a run begins or ends.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Protocol, Self, cast

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from upge.errors import InputError
from upge.processes import SIGNALS, Ended, ProcessGroup, how_ended, tail
from upge.recipe.schema import Recipe
from upge.runs import status
from upge.runs.log_lines import metrics_line
from upge.sweep.axes import Cell, Standing
from upge.tables import fixed, folding

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


EVERY = 1.0
"""Seconds between two looks at the run folders, where somebody watches."""

STATES = ("running", "failed", "stopped", "finished", "waiting")
HEADING = 5
"""Lines of the table beside its rows."""


@dataclass
class Followed:
    """The newest lines of a metrics.jsonl that grows. Attributes: newest: by phase."""

    file: Path
    newest: dict[str, dict[str, Any]] = field(default_factory=dict)
    position: int = 0

    def read(self) -> None:
        """Take in what has been added; a run that was resumed may have cut the file back."""
        if not self.file.is_file():
            return
        if self.file.stat().st_size < self.position:
            self.position = 0
        with self.file.open("rb") as file:
            file.seek(self.position)
            whole = file.read().rpartition(b"\n")[0]
        try:
            lines = [metrics_line(line, str(self.file)) for line in whole.split(b"\n") if line]
        except InputError:  # cut back and grown again: this began inside a line
            self.position = 0
            return
        self.position += len(whole) + 1 if whole else 0
        self.newest |= {line["phase"]: line for line in lines}

    def numbers(self) -> tuple[str, str]:
        """The last step's reward, and the last measurement of the first split."""
        reward = self.newest.get("train", {}).get("reward")
        scores = [(name, value) for name, value in self.newest.get("eval", {}).items() if "/avg@" in name]
        shown = "" if reward is None else fixed(reward)
        return shown, f"{scores[0][0]} {fixed(scores[0][1])}" if scores else ""


class Show:
    """Shows the tasks of a grid. Attributes: every: seconds between looks; None where nobody watches."""

    def __init__(self, tasks: Sequence[Task], console: Console | None = None) -> None:
        self.tasks = tasks
        self.console = console or Console(stderr=True, highlight=False)
        self.every = EVERY if self.console.is_terminal else None
        self._followed = {task.cell.folder: Followed(task.cell.folder / "metrics.jsonl") for task in tasks}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        for task in self.tasks:
            if task.standing == "finished":
                self._tell(task, "is finished already")
        if self.console.is_terminal:
            self._live = Live(self.table(), console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self.look()
            self._live.stop()

    def began(self, task: Task) -> None:
        """Say which run begins, or goes on."""
        self._tell(task, "goes on" if task.standing == "unfinished" else "begins", f"run folder {task.cell.folder}")
        self.look()

    def ended(self, task: Task) -> None:
        """Say how a run has ended."""
        followed = self._followed[task.cell.folder]
        followed.read()
        reward, score = followed.numbers()
        numbers = f"reward {reward}  {score}" if task.state == "finished" else f"see {task.cell.log}"
        self._tell(task, task.state, numbers)
        self.look()

    def look(self) -> None:
        """Draw the table anew."""
        if self._live is not None:
            self._live.update(self.table(), refresh=True)

    def table(self) -> Table:
        """A row a run: how far it is, the last step's reward, the last measurement."""
        table = folding()
        for column in ("run", "", "step", "reward", "measured"):
            table.add_column(column, justify="right" if column in ("step", "reward") else "left")
        for task in self._in_order():
            followed = self._followed[task.cell.folder]
            followed.read()
            table.add_row(task.cell.name, task.state, self._step(task), *followed.numbers())
        return table

    def _in_order(self) -> Sequence[Task]:
        """As they were given, or, where the terminal cuts the table off, those first that have something to tell."""
        fit = len(self.tasks) + HEADING <= self.console.height
        return self.tasks if fit else sorted(self.tasks, key=lambda task: STATES.index(task.state))

    def _step(self, task: Task) -> str:
        said = status.read(task.cell.folder)
        return f"{said.step if said is not None else 0}/{task.cell.recipe.train.steps}"

    def _tell(self, task: Task, what: str, more: str = "") -> None:
        if self.console.is_terminal:
            return  # the table says it
        number = 1 + self.tasks.index(task)
        text = f"{number}/{len(self.tasks)} {task.cell.name} {what}" + (f": {more}" if more.strip() else "")
        self.console.print(text, markup=False, soft_wrap=True)
