"""Grading in processes of their own, which whatever a response holds can neither hang nor crash for long.

Why no library's pool: those of `concurrent.futures` and `multiprocessing` can't stop a task. Pebble's can, but its
workers share a pipe and its lock, which it holds while it waits up to three seconds for one that is deaf to signals,
as a huge power is. Meanwhile the other tasks' clocks go on, and right answers would score 0. Here no grader shares
anything with another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from typing import Any

from upge import InputError, PipedProcess

SECONDS_TO_END = 10
"""How long a process may take to end once it has closed its pipe."""

Question = tuple[Any, ...]

MEMORY = 4 * 2**30
"""Bytes of address space of a grader; what needs more scores 0."""


class Graders:
    """Keepers (see `upge_parts.rewards.keeper`) that share the questions.

    Args:
        module: which has `prepare` and `grade`.
        count: how many work at once.
        seconds: what one question may take.
    """

    def __init__(self, module: str, count: int, seconds: float) -> None:
        self._command = (module, str(seconds), str(MEMORY))
        self._keepers = [_Started(self._command) for _ in range(count)]

    def grade(self, questions: Sequence[Question]) -> list[float | None]:
        """The grades in order; None where grading failed: too slow, too large, or the end of the grader."""
        if not self._keepers:
            raise RuntimeError("the graders have been stopped")
        grades: list[float | None] = [None] * len(questions)
        waiting = iter(enumerate(questions))
        idle = list(range(len(self._keepers)))
        asked: dict[Connection[Any, Any], tuple[int, int]] = {}
        while True:
            while idle and (following := next(waiting, None)) is not None:
                keeper, (index, question) = idle.pop(), following
                asked[self._ask(keeper, question)] = (keeper, index)
            if not asked:
                return grades
            for ready in wait(list(asked)):
                keeper, index = asked.pop(ready)  # type: ignore[call-overload]
                grades[index] = self._answer(keeper)
                idle.append(keeper)

    def _ask(self, keeper: int, question: Question) -> Connection[Any, Any]:
        try:
            self._keepers[keeper].connection.send(question)
        except OSError:  # it died idle, so the question isn't to blame
            self._replace(keeper)
            self._keepers[keeper].connection.send(question)
        return self._keepers[keeper].connection

    def _answer(self, keeper: int) -> float | None:
        try:
            grade: float | None = self._keepers[keeper].connection.recv()
        except (EOFError, OSError):
            self._replace(keeper)
            return None
        return grade

    def _replace(self, keeper: int) -> None:
        self._keepers[keeper].stop()
        self._keepers[keeper] = _Started(self._command)
        self._keepers[keeper].ready()

    def ready(self) -> None:
        """Wait until all are prepared. Raises InputError with what went wrong in one that can't be."""
        for keeper in self._keepers:
            keeper.ready()

    def stop(self) -> None:
        """End them all, whatever they are at."""
        while self._keepers:
            self._keepers.pop().stop()


class _Started:
    """A keeper's process; its grader ends with it."""

    def __init__(self, command: Sequence[str]) -> None:
        # The order of sets may decide how far an expression is simplified.
        fixed = {"PYTHONHASHSEED": "0"}
        self._process = PipedProcess(["-m", "upge_parts.rewards.keeper"], command, fixed)
        self.connection = self._process.connection

    def ready(self) -> None:
        try:
            fault = self.connection.recv()
        except (EOFError, OSError):
            fault = f"it ended with exit code {self._process.end(SECONDS_TO_END)}"
        if fault:
            raise InputError(f"a reward's process can't be started: {fault}")

    def stop(self) -> None:
        self._process.end()


@contextmanager
def graders(module: str, count: int, seconds: float) -> Iterator[Graders]:
    """Graders, prepared; stopped at the end."""
    if os.name != "posix":
        raise InputError("a reward that grades in processes of its own needs Linux or macOS")
    opened = Graders(module, count, seconds)
    try:
        opened.ready()
        yield opened
    finally:
        opened.stop()
