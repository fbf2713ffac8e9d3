"""How a grid goes, on stderr: a live table with a row a run, or a line whenever a run begins or ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from upge.errors import InputError
from upge.runs import status
from upge.runs.log_lines import metrics_line
from upge.sweep.executor import Task
from upge.tables import fixed, folding

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
