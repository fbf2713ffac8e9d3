"""A process that keeps graders: each grades one response, and is killed when it takes too long.

Run by `upge_parts.rewards.graders`: `python -m upge_parts.rewards.keeper <connection> <module> <seconds> <bytes>`.
The module has `prepare()`, run once here, and `grade(*question) -> float`, run in the grader: a fork of this process,
so that it starts prepared. Every question has a fork of its own: what reads a response may remember something of it, as
sympy's caches do, and no response may have a say in the score of another. This process looks at none of them.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import resource
import sys
from collections.abc import Callable
from multiprocessing import Pipe, get_context
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

Grade = Callable[..., float]
Line: TypeAlias = "Connection[Any, Any]"


class Keeper:
    """Answers questions, each through a grader of its own, which may take so many seconds and bytes."""

    def __init__(self, grade: Grade, outside: Line, seconds: float, memory: int) -> None:
        self._grade, self._outside, self._seconds, self._memory = grade, outside, seconds, memory

    def ask(self, question: tuple[Any, ...]) -> float | None:
        """The grade; None where it took too long, or the grader died of it."""
        inside, theirs = Pipe(duplex=False)
        grader = get_context("fork").Process(target=self._answer, args=(question, inside, theirs), daemon=True)
        grader.start()
        theirs.close()
        try:
            grade: float | None = inside.recv() if inside.poll(self._seconds) else None
            return grade
        except (EOFError, OSError):  # it died
            return None
        finally:
            grader.kill()
            grader.join()
            inside.close()

    def _answer(self, question: tuple[Any, ...], inside: Line, theirs: Line) -> None:
        inside.close()
        self._outside.close()  # else its other end would not see the keeper go
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(ValueError, OSError):  # not every system has this limit
            resource.setrlimit(resource.RLIMIT_AS, (self._memory, self._memory))
        try:
            grade: float | None = float(self._grade(*question))
        except Exception:  # a response may break whatever reads it, in any way
            grade = None
        theirs.send(grade)


def main() -> None:
    """Say "" when ready, or what went wrong; then answer until nobody asks."""
    number, module, seconds, memory = sys.argv[1:]
    outside: Line = Connection(int(number))
    try:
        graders = importlib.import_module(module)
        graders.prepare()
    except Exception as error:
        outside.send(f"{type(error).__name__}: {error}")
        return
    gc.freeze()  # what is there by now is shared with the graders, and stays so if none of them counts it
    keeper = Keeper(graders.grade, outside, float(seconds), int(memory))
    with contextlib.suppress(EOFError, OSError):  # whoever asked is gone
        outside.send("")
        while True:
            outside.send(keeper.ask(outside.recv()))


if __name__ == "__main__":
    main()
