"""Processes in sessions of their own: signals reach all of them, and what they have started ends with them."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from upge.processes import Ended, PipedProcess, ProcessGroup, how_ended, tail

LOUD = "import signal, sys, time; signal.signal({}, lambda n, f: sys.exit(100 + n)); print('up', flush=True); {}"
CHILD = "import time; print(1, flush=True); time.sleep(60)"
PARENT = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {CHILD!r}])"
PARROT = """
import os, sys
from multiprocessing.connection import Connection
line = Connection(int(sys.argv[1]))
line.send((os.getsid(0) == os.getpid(), sys.argv[2:], os.environ["PARROT"]))
{}
"""


def started(group: ProcessGroup, key: int, program: str) -> None:
    """Start a program, and wait for its first line."""
    reading, writing = os.pipe()
    group.start(key, [sys.executable, "-c", program], os.environ, stdout=writing, stdin=subprocess.DEVNULL)
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert lines.readline()


def ends(group: ProcessGroup) -> list[Any]:
    """The events until nothing runs."""
    events = []
    while group.running:
        events.append(group.wait(60))
    return events


def test_a_signal_reaches_every_process_each_time_it_comes() -> None:
    group = ProcessGroup()
    for key in range(2):
        started(group, key, LOUD.format("signal.SIGTERM", "signal.pause()"))
    with group.forwarding():
        os.kill(os.getpid(), signal.SIGTERM)
        first, *others = ends(group)
    assert first == signal.SIGTERM
    assert sorted(others) == [Ended(0, 115), Ended(1, 115)]
    assert group.signals == [signal.SIGTERM]


def test_nothing_comes_within_the_time() -> None:
    group = ProcessGroup()
    started(group, 0, LOUD.format("signal.SIGTERM", "time.sleep(60)"))
    assert group.wait(0.0) is None
    group.send(signal.SIGKILL)
    assert ends(group) == [Ended(0, -signal.SIGKILL)]


def test_a_kill_ends_what_the_process_has_started() -> None:
    """The pipe to its child's output is at its end once nobody has it open any more."""
    group = ProcessGroup()
    reading, writing = os.pipe()
    group.start(0, [sys.executable, "-c", PARENT], os.environ, stdout=writing)
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert lines.readline() == "1\n"
        group.send(signal.SIGKILL)
        assert ends(group) == [Ended(0, -signal.SIGKILL)]
        assert lines.read() == ""


@pytest.fixture
def parrot(tmp_path: Path) -> Any:
    """Starts a program that says what it was started with, and then does something."""

    def start(then: str) -> PipedProcess:
        (tmp_path / "parrot.py").write_text(PARROT.format(then))
        process = PipedProcess([str(tmp_path / "parrot.py")], ["a", "b"], {"PARROT": "green"})
        assert process.connection.recv() == (True, ["a", "b"], "green")
        return process

    return start


def test_a_piped_process_ends_by_itself_when_its_pipe_is_closed(parrot: Any) -> None:
    process = parrot("try: line.recv()\nexcept EOFError: sys.exit(7)")
    assert process.end(60) == 7
    assert process.end() == 7


def test_one_that_does_not_end_in_time_is_killed(parrot: Any) -> None:
    assert parrot("import signal\nsignal.pause()").end(0.0) == -signal.SIGKILL


def test_one_that_nobody_holds_is_killed(parrot: Any) -> None:
    process = parrot("import signal\nsignal.pause()")
    popen = process._process
    del process
    gc.collect()
    assert popen.returncode == -signal.SIGKILL


def test_how_a_process_ended_and_what_it_wrote_last(tmp_path: Path) -> None:
    assert how_ended(3) == "ended with exit code 3"
    assert how_ended(-9) == "was ended by SIGKILL"
    (tmp_path / "log").write_bytes(b"one\n\n two\xff\nthree\n")
    assert tail(tmp_path / "log", 2) == [" two�", "three"]
    assert tail(tmp_path / "nowhere", 2) == []
