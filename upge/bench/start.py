"""How long the command takes to begin, beside what it begins with: the interpreter, and torch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

from upge.bench.timing import SECONDS, Table, in_turns, machine, seconds

COMMANDS = {
    "python -c pass": ("-c", "pass"),
    "python -c 'import torch'": ("-c", "import torch"),
    "upge --help": ("-m", "upge", "--help"),
    "upge list": ("-m", "upge", "list"),
    "upge validate bench/step": ("-m", "upge", "validate", "bench/step"),
}
"""What is timed: arguments of this Python."""


def measure(*, repeats: int = 5) -> Table:
    """Seconds from a process's start to its end; each command once unmeasured, so that its files are in memory."""
    timings = in_turns({name: _running(*arguments) for name, arguments in COMMANDS.items()}, repeats=repeats)
    bare = timings["python -c pass"].median
    return Table(
        title="Commands, each in a process of its own",
        columns=["", SECONDS, "above python's own"],
        rows=[[name, f"{timing:.2f}", f"{timing.median - bare:.2f}"] for name, timing in timings.items()],
        notes=[machine()],
        facts={"seconds": seconds(timings)},
    )


def _running(*arguments: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
