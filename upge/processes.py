"""Processes that a command starts on this machine: each in a session of its own, so that it ends with all it started.

A terminal sends Ctrl-C to every process of its group. A process in a session of its own gets only the signals that its
parent forwards.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""What asks for an end."""


class Ended(NamedTuple):
    """A process that has ended. Attributes: code: its exit code, or below 0 the number of the signal that ended it."""

    key: Hashable
    code: int


class ProcessGroup:
    """Commands that run side by side; signals to this process reach all of them.

    Attributes: signals: those that have come, in order. running: the processes by their keys.
    """

    def __init__(self) -> None:
        self.signals: list[signal.Signals] = []
        self.running: dict[Hashable, subprocess.Popen[bytes]] = {}
        # A queue, since a handler may run while `start` is half done.
        self._events: queue.SimpleQueue[Ended | signal.Signals] = queue.SimpleQueue()

    def start(self, key: Hashable, command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> None:
        """Start a command. Args: streams: `stdin`, `stdout` and `stderr`, as subprocess.Popen takes them."""
        process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
        self.running[key] = process
        threading.Thread(target=lambda: self._events.put(Ended(key, process.wait())), daemon=True).start()

    @contextmanager
    def forwarding(self) -> Iterator[None]:
        """While open, each SIGINT and SIGTERM is kept for `wait`, which sends it to every process."""

        def keep(number: int, frame: FrameType | None) -> None:
            del frame
            self.signals.append(signal.Signals(number))
            self._events.put(signal.Signals(number))

        before = {number: signal.signal(number, keep) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def wait(self, seconds: float | None = None) -> Ended | signal.Signals | None:
        """The next process that has ended, or a signal, which has been forwarded; None if nothing came in so long."""
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(event, Ended):
            del self.running[event.key]
        else:
            self.send(event)
        return event

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every process; SIGKILL also to all that they have started in their sessions."""
        for process in self.running.values():
            if number == signal.SIGKILL:
                kill_session(process)
            else:
                process.send_signal(number)


class PipedProcess:
    """A Python program that is asked over a pipe. It gets the pipe's file descriptor as its first argument.

    It has no terminal and no standard streams, and ends at the latest when this object goes.

    Attributes: connection: this end of the pipe. Its other end is closed when the process ends.
    """

    def __init__(self, program: Sequence[str], arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it. Args: program: what Python runs: `["-m", "package.module"]`, or a script. environment: added to."""
        self.connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-P", *program, str(theirs.fileno()), *arguments],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | environment,
        )
        theirs.close()
        self._finalizer = weakref.finalize(self, _end, self.connection, self._process, 0.0)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def end(self, seconds: float = 0.0) -> int:
        """Close the pipe, wait so long for the process to end by itself, then kill its session; its exit code."""
        self._finalizer.detach()
        return _end(self.connection, self._process, seconds)


def _end(connection: Connection[Any, Any], process: subprocess.Popen[bytes], seconds: float) -> int:
    connection.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.wait(timeout=seconds)
    kill_session(process)
    return process.wait()


def kill_session(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that leads a session, with all that it has started there."""
    if process.returncode is None:  # while nobody has waited for it, its number is nobody else's
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def how_ended(code: int) -> str:
    """`ended with exit code 3`, or, of one that a signal ended, `was ended by SIGKILL`."""
    return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def tail(file: Path, lines: int) -> list[str]:
    """The last lines of what a process wrote into a file, without blank ones; none where there is no file."""
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8", errors="replace")
    return [line for line in text.splitlines() if line.strip()][-lines:]
