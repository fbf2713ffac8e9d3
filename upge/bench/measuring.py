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


@dataclass(frozen=True)
class Timing:
    """The seconds that each repetition of one candidate took."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The median, seconds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """The fastest and the slowest, seconds."""
        return min(self.seconds), max(self.seconds)


def in_turns(candidates: Mapping[str, Callable[[], Any]], repeats: int = 5, warmups: int = 1) -> dict[str, Timing]:
    """Wall-clock seconds of each candidate: after `warmups` unmeasured rounds, `repeats` rounds of all of them.

    Every second round goes backwards, so that no candidate always has the same one before it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for index in range(warmups + repeats):
        order = list(candidates) if index % 2 == 0 else list(candidates)[::-1]
        for name in order:
            gc.collect()
            began = time.perf_counter()
            candidates[name]()
            if index >= warmups:
                seconds[name].append(time.perf_counter() - began)
    return {name: Timing(tuple(measured)) for name, measured in seconds.items()}


@dataclass(frozen=True)
class Table:
    """What a benchmark found.

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
