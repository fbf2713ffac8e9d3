"""What the hostile cases share: a case, and how a command is held to its exit codes."""

from __future__ import annotations

import io
import os
import re
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upge.cli.app import reported
from upge.cli.main import app

SECONDS = 10
"""Processor time that a case may take; and six times that to wait for something."""

DEEP = "[" * 100_000
HUGE = "9" * 5000


@dataclass(frozen=True)
class Case:
    """A hostile input.

    Attributes:
        words: the command to try it with, after `upge`. says: a pattern of the message: the place, and the reason.
        code: the exit code.
    """

    words: Sequence[str]
    says: str
    code: int = 2


class Payload:
    """Makes a folder where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.canary),)


@contextmanager
def bounded() -> Iterator[None]:
    """Ends what hangs: by its processor time, which a busy machine doesn't change, or because it waits."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} seconds")

    before = {number: signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    signal.alarm(6 * SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def said_by(*words: str) -> tuple[int, str]:
    """The exit code of `upge WORDS`, and all that it prints."""
    said = io.StringIO()
    with bounded(), redirect_stdout(said), redirect_stderr(said):
        try:
            with reported():
                app(list(words))
        except SystemExit as ended:
            return int(ended.code or 0), said.getvalue()
    return 0, said.getvalue()


def check(case: Case) -> str:
    """Hold a case to its exit code and its reason; what was said."""
    code, said = said_by(*case.words)
    assert "Traceback" not in said
    assert re.search(case.says, said, re.DOTALL), f"{case.says!r} is not in what was said:\n{said[:2000]}"
    assert code == case.code, said[:2000]
    return said
