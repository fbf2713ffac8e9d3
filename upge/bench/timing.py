"""Timing things against each other, in turns, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SECONDS = "seconds, median (least to most)"
"""A column of timings."""


@dataclass(frozen=True)
class Spread:
    """A number that was measured several times; `f"{spread:.1f}"` is «2.5 (2.4 to 2.7)», median (least to most)."""

    median: float
    low: float
    high: float

    def __format__(self, form: str) -> str:
        return f"{self.median:{form}} ({self.low:{form}} to {self.high:{form}})"

    def times(self, factor: float) -> Spread:
        """The same in another unit."""
        return Spread(factor * self.median, factor * self.low, factor * self.high)


@dataclass(frozen=True)
class Timing:
    """The seconds that each repetition of one candidate took; formats as their spread does."""

    seconds: tuple[float, ...]

    def __format__(self, form: str) -> str:
        return format(self.spread, form)

    @property
    def median(self) -> float:
        """The median, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> Spread:
        """The median, the fastest and the slowest, seconds."""
        return Spread(self.median, min(self.seconds), max(self.seconds))

    def rate(self, amount: float) -> Spread:
        """How much of `amount`, which every repetition does, is done in a second."""
        spread = self.spread
        return Spread(amount / spread.median, amount / spread.high, amount / spread.low)

    def ratio(self, other: Timing) -> Spread:
        """The medians' ratio to another candidate's; the least and most of a round."""
        rounds = [mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)]
        return Spread(self.median / other.median, min(rounds), max(rounds))


def seconds(timings: Mapping[str, Timing]) -> dict[str, tuple[float, ...]]:
    """Every measured second by candidate, for `Table.facts`."""
    return {name: timing.seconds for name, timing in timings.items()}


def in_turns(candidates: Mapping[str, Callable[[], Any]], repeats: int = 5, warmups: int = 1) -> dict[str, Timing]:
    """Wall-clock seconds of each candidate: after `warmups` unmeasured rounds, `repeats` rounds of all of them.

    Every second round goes backwards, so that no candidate always has the same one before it.
    """
    measured: dict[str, list[float]] = {name: [] for name in candidates}
    gc.collect()
    gc.freeze()  # what was there before is no candidate's: no collection goes through it again
    try:
        for index in range(warmups + repeats):
            order = list(candidates) if index % 2 == 0 else list(candidates)[::-1]
            for name in order:
                gc.collect()
                began = time.perf_counter()
                candidates[name]()
                if index >= warmups:
                    measured[name].append(time.perf_counter() - began)
    finally:
        gc.unfreeze()
    return {name: Timing(tuple(times)) for name, times in measured.items()}


@dataclass(frozen=True)
class Table:
    """The results of a benchmark.

    Attributes:
        title: what was measured. columns, rows: cells as text. notes: sentences below the table.
        facts: the numbers for programs (`--json`).
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)


def machine() -> str:
    """One line on what was measured on: processor, cores, torch and its threads."""
    import torch

    return (
        f"{_processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}, Python "
        f"{platform.python_version()}"
    )


def _processor() -> str:
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
