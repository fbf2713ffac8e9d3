"""What a run shows: a live line or plain lines while it goes on (stderr), a summary at the end (stdout)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from upge.files import shown
from upge.recipe.schema import Recipe
from upge.tables import fixed, folding
from upge.train.health_checks import clipping

Metrics = Mapping[str, Any]

UPDATES = {
    "made": "",
    "without_signal": "without signal",
    "not_finite": "not finite",
    "skipped": "above the norm to skip",
}
"""The metrics `updates/…`, and how those are told that took no optimizer step."""


class Display:
    """Shows a run's progress. Attributes: shown: only the main process shows anything."""

    def __init__(self, progress: Console | None = None, data: Console | None = None) -> None:
        self.console = progress or Console(stderr=True, highlight=False)
        self.data = data or Console(highlight=False)
        self.shown = True
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._began = time.perf_counter()
        self._start = self._steps = 0
        self._terms: tuple[str, ...] = ()
        self._clipping: tuple[str, ...] = ()
        self._updates: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def begin(self, recipe: Recipe, folder: Path, start: int) -> None:
        """Say what runs, and where it is kept."""
        self._start, self._steps, self._terms = start, recipe.train.steps, tuple(recipe.estimator.terms)
        self._clipping = clipping(recipe.estimator)
        if not self.shown:
            return
        self.console.print(recipe.name, style="bold", end=" ", markup=False)
        self.console.print(shown(f"{recipe.about}\nrun folder: {folder}"), markup=False)
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(20), TextColumn("{task.fields[line]}", markup=False))
            self._bar = Progress(*columns, TimeRemainingColumn(compact=True), console=self.console)
            self._bar.start()
            self._task = self._bar.add_task("step", total=self._steps, completed=start, line="")

    def found(self, faults: Sequence[str]) -> None:
        """Say what is wrong with the data."""
        self.tell(faults)

    def tell(self, sentences: Sequence[str]) -> None:
        """Say what is worth knowing, a line each."""
        for sentence in sentences if self.shown else ():
            self.console.print(shown(sentence), markup=False, soft_wrap=True)

    def step(self, metrics: Metrics, seconds: Mapping[str, float]) -> None:
        """Show a step."""
        if not self.shown:
            return
        line = self._line(metrics, seconds)
        self._count(metrics)
        done = metrics["step"] + 1
        if self._bar is not None:
            self._bar.update(self._task, completed=done, description=f"step {done}/{self._steps}", line=line)
        elif done in (1, self._steps) or done % max(1, self._steps // 20) == 0:
            self.console.print(f"step {done}/{self._steps}  {line}  {self._left(done)}", markup=False, soft_wrap=True)

    def evaluation(self, metrics: Metrics) -> None:
        """Show a measurement."""
        if self.shown:
            scores = [f"{name} {fixed(value)}" for name, value in metrics.items() if "/avg@" in name]
            line = f"measured after {metrics['step']}: " + "  ".join(scores)
            self.console.print(shown(line), markup=False, soft_wrap=True)

    def end(self, evaluations: Sequence[Metrics], folder: Path) -> None:
        """Print the summary: the first and the last measurement side by side."""
        self._stop()
        if not self.shown:
            return
        if evaluations:
            self.data.print(_before_and_after(evaluations))
        if self._updates and not self._updates["made"]:
            since = f" since step {self._start}" if self._start else ""
            why = _untaken(self._updates) or "no rows to learn from"
            self.tell([f"no step{since} has changed the model: {why}"])
        seconds = time.perf_counter() - self._began
        line = f"took {seconds:.0f} s; trained model: {folder / 'model'}"
        self.console.print(shown(line), markup=False, soft_wrap=True)

    def _count(self, metrics: Metrics) -> None:
        for name in UPDATES:
            self._updates[name] = self._updates.get(name, 0.0) + metrics.get(f"updates/{name}", 0.0)

    def _line(self, metrics: Metrics, seconds: Mapping[str, float]) -> str:
        parts = []
        if "reward" in metrics:
            parts.append(f"reward {fixed(metrics['reward'])}")
        shares = [f"{term} {metrics[f'share/{term}']:.2f}" for term in self._terms if f"share/{term}" in metrics]
        parts.append("prompts in " + " ".join(shares))
        masked = {term: metrics[f"{term}/masked"] for term in self._terms if metrics.get(f"{term}/masked")}
        for word, terms in (("clipped", masked.keys() & self._clipping), ("masked", masked.keys() - self._clipping)):
            if terms:
                parts.append(f"{word} {max(masked[term] for term in terms):.3f}")
        if untaken := _untaken({name: metrics.get(f"updates/{name}", 0.0) for name in UPDATES}):
            parts.append(f"updates {untaken}")
        tokens = sum(metrics.get(f"{term}/tokens", 0.0) for term in self._terms)
        parts.append(f"{tokens / max(sum(seconds.values()), 1e-9):.0f} tokens/s")
        return "  ".join(parts)

    def _left(self, done: int) -> str:
        left = (time.perf_counter() - self._began) / done * (self._steps - done)
        return f"{left:.0f} s left"

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _untaken(updates: Mapping[str, float]) -> str:
    """The updates that were not taken, and why."""
    found = {told: updates[name] for name, told in UPDATES.items() if told and updates[name]}
    return ", ".join(f"{told} {count:.0f}" for told, count in found.items())


def _before_and_after(evaluations: Sequence[Metrics]) -> Table:
    """avg@n and pass@k of every split and band, at the first and the last measurement."""
    first, last = evaluations[0], evaluations[-1]
    table = folding(title_justify="left")
    table.add_column("measured on")
    table.add_column("score")
    table.add_column(f"after {first['step']}", justify="right")
    table.add_column(f"after {last['step']}", justify="right")
    for name, value in last.items():
        place, _, score = name.rpartition("/")
        if place and "@" in score and name in first:
            table.add_row(Text(shown(place)), Text(shown(score)), fixed(first[name]), fixed(value))
    return table
