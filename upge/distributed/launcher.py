"""`--processes N`: one command, N processes of this machine.

torchrun has other messages and exit codes: its exit code is always 1, each process prints every message, and a second
signal never reaches the processes.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from upge.processes import Ended, ProcessGroup, how_ended, tail

MESSAGES = "UPGE_MESSAGES"
"""The folder in which each process writes its last message, under its rank."""
GRACE = 30.0
"""Seconds for processes to end by themselves when one of them has failed; and as many again after SIGTERM."""
LOST = "another process of this run has failed or ended"
"""How the message begins of one that noticed no more than that."""


def due(processes: int | None) -> bool:
    """Whether there are processes to launch. Raises InputError: others than this command's launcher has started."""
    from upge.errors import InputError

    started = os.environ.get("WORLD_SIZE")
    if processes is None or started is None:
        return processes is not None and processes > 1
    if int(started) != processes:
        raise InputError(f"--processes {processes}: a launcher has started {started} already; leave the option out")
    return False


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `upge ARGUMENTS` in so many processes; their exit code. The first one's output is this process's.

    Raises InputError: there are fewer GPUs.
    """
    from upge.files import shown

    _check(processes)
    with tempfile.TemporaryDirectory(prefix="upge-messages-") as folder:
        launcher = LocalLauncher(Path(folder), [sys.executable, "-m", "upge", *arguments], processes)
        with launcher.group.forwarding():
            code = launcher.ended()
        for message in launcher.messages():
            print(shown(message), file=sys.stderr)
        return code


def _check(processes: int) -> None:
    import torch

    from upge.errors import InputError

    if torch.accelerator.is_available() and torch.accelerator.device_count() < processes:
        raise InputError(f"--processes {processes}: this machine has {torch.accelerator.device_count()} devices")


class LocalLauncher:
    """Processes that do the same. Attributes: codes: of those that have ended, in the order in which they did."""

    def __init__(self, folder: Path, command: Sequence[str], processes: int) -> None:
        self.folder, self.processes, self.codes = folder, processes, dict[int, int]()
        self.group = ProcessGroup()
        shared = _environment(processes) | {MESSAGES: str(folder)}
        for rank in range(processes):
            self._start(command, rank, {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})

    def _start(self, command: Sequence[str], rank: int, environment: Mapping[str, str]) -> None:
        if rank == 0:
            self.group.start(rank, command, environment)
            return
        with (self.folder / f"{rank}.stderr").open("wb") as errors:
            self.group.start(rank, command, environment, stdout=subprocess.DEVNULL, stderr=errors)

    def ended(self) -> int:
        """Wait for all; after a failure the others have `GRACE` seconds, are then terminated, and then killed."""
        for ultimatum in (None, signal.SIGTERM, signal.SIGKILL):
            if ultimatum is not None:
                self.group.send(ultimatum)
            if self._all_end():
                break
        return self._code()

    def _all_end(self) -> bool:
        while len(self.codes) < self.processes:
            stopped = {128 + number for number in self.group.signals}
            failed = any(code not in {0, *stopped} for code in self.codes.values())
            event = self.group.wait(GRACE if failed else None)
            if event is None:
                return False
            if isinstance(event, Ended):
                self.codes[cast("int", event.key)] = event.code
        return True

    def _code(self) -> int:
        """Of the first that ended otherwise than well, or than by the failure of another."""
        wrong = [rank for rank, code in self.codes.items() if code]
        if not wrong:
            return 0
        causes = [rank for rank in wrong if not self._message(rank).startswith(LOST)]
        code = self.codes[(causes or wrong)[0]]
        return code if code > 0 else 128 + self.group.signals[-1] if self.group.signals else 1

    def messages(self) -> list[str]:
        """The messages of failed processes, each once, in the order of the failures."""
        messages = {rank: self._message(rank) for rank, code in self.codes.items() if code}
        causes = [text for text in messages.values() if not text.startswith(LOST)] or list(messages.values())
        whole: dict[str, str] = {}  # of messages with the same gist, the longest: it has the command to resume
        for text in causes:
            whole[_gist(text)] = max(text, whole.get(_gist(text), ""), key=len)
        return list(whole.values())

    def _message(self, rank: int) -> str:
        """A process's last message, or, if it left none, the end of its stderr and how it ended."""
        file = self.folder / str(rank)
        if file.is_file():
            return file.read_text(encoding="utf-8").rstrip("\n")
        lines = tail(self.folder / f"{rank}.stderr", 20)
        return "\n".join([*lines, f"process {rank} {how_ended(self.codes[rank])}, without a message"])


def _gist(text: str) -> str:
    """The line that identifies equal messages: the first line, or of a traceback the last."""
    return text.splitlines()[-1 if text.startswith("Traceback") else 0] if text else ""


def _environment(processes: int) -> dict[str, str]:
    """The environment variables for torch's processes; threads are divided among them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    threads = max(1, (os.cpu_count() or 1) // processes)
    return {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
    }
