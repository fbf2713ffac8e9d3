"""`upge …` in a process of its own that is forked, and not started: importing what a run needs takes seconds.

The server of `multiprocessing` imports it once. What it forks has its own exit code, signals, folder and environment,
as a command that a shell starts. Variables that other packages read when they are imported are the server's, which is
off line.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from multiprocessing import Pipe, forkserver, get_context
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import IO
from unittest import mock

from support import cpu_seconds

PRELOAD = [
    "upge.cli.main",
    "upge.train.run",
    "upge_parts.engines.transformers_engine",
    "transformers.models.llama",
]


@cache
def _context() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with mock.patch.dict(os.environ, {"HF_HUB_OFFLINE": "1"}):
        forkserver.ensure_running()
    return context


def _command(
    words: tuple[str, ...], says: Connection, home: Path, folder: Path, environment: Mapping[str, str]
) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(home / "stdout", os.O_WRONLY | os.O_CREAT), 1)
    os.dup2(says.fileno(), 2)
    says.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["upge", *words]
    from upge.cli.main import main

    try:
        main()
    finally:
        (home / "seconds").write_text(str(cpu_seconds.cpu_seconds()))


class Command:
    """A command that runs. Attributes: stderr: what it says, as it says it."""

    def __init__(self, words: tuple[str, ...], home: Path, folder: Path, environment: Mapping[str, str]) -> None:
        self._home = home
        heard, says = Pipe(duplex=False)
        self._process = _context().Process(target=_command, args=(words, says, home, folder, dict(environment)))
        self._process.start()
        says.close()
        self.stderr: IO[str] = os.fdopen(os.dup(heard.fileno()))
        heard.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait(self) -> int:
        """The exit code; that of a process that a signal ended is below 0."""
        self._process.join()
        seconds = self._home / "seconds"
        if seconds.exists():
            cpu_seconds.elsewhere += float(seconds.read_text())
            seconds.unlink()
        assert self._process.exitcode is not None
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def stdout(self) -> str:
        return (self._home / "stdout").read_text()


@contextmanager
def started(*words: str, folder: Path | None = None, environment: Mapping[str, str] | None = None) -> Iterator[Command]:
    """`upge WORDS`, in a folder, with an environment; ended when the context is."""
    with tempfile.TemporaryDirectory() as home:
        given = os.environ if environment is None else environment
        process = Command(words, Path(home), folder or Path.cwd(), given)
        try:
            with process.stderr:
                yield process
        finally:
            process.kill()


def command(
    *words: str, folder: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """What `upge WORDS` ends with."""
    with started(*words, folder=folder, environment=environment) as process:
        said = process.stderr.read()
        code = process.wait()
        return subprocess.CompletedProcess(["upge", *words], code, process.stdout(), said)
