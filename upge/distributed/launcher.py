"""`--processes N`: one command, N processes of this machine.

torchrun would do, but for what it says and how it ends: its exit code is always 1, each process prints every message,
and a second signal never reaches them.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MESSAGES = "UPGE_MESSAGES"
"""The folder in which each process leaves what it would have said at its end, under its rank."""
GRACE = 30.0
"""Seconds for processes to end by themselves when one of them has failed; as many again after they were told to."""
LOST = "another process of this run has failed or is gone"
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
        crew = LocalLauncher(Path(folder), [sys.executable, "-m", "upge", *arguments], processes)
        with crew.handing_on_signals():
            code = crew.ended()
        for message in crew.messages():
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
        self.folder, self.codes, self.asked = folder, dict[int, int](), 0
        self._ended: queue.SimpleQueue[int] = queue.SimpleQueue()
        shared = _environment(processes) | {MESSAGES: str(folder)}
        self.members = [self._started(command, rank, shared) for rank in range(processes)]
        for rank in range(processes):
            threading.Thread(target=self._wait_for, args=(rank,), daemon=True).start()

    def _started(self, command: Sequence[str], rank: int, shared: Mapping[str, str]) -> subprocess.Popen[bytes]:
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        # A session of its own: a terminal sends Ctrl-C to all processes in its group, and here it is handed on.
        if rank == 0:
            return subprocess.Popen(command, env=environment, start_new_session=True)
        with (self.folder / f"{rank}.stderr").open("wb") as errors:
            return subprocess.Popen(
                command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors
            )

    def _wait_for(self, rank: int) -> None:
        self.members[rank].wait()
        self._ended.put(rank)

    @contextmanager
    def handing_on_signals(self) -> Iterator[None]:
        """While open, SIGINT and SIGTERM go to every process, each time they come."""

        def hand_on(number: int, frame: FrameType | None) -> None:
            del frame
            self.asked = number
            self._send(number)

        before = {number: signal.signal(number, hand_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def ended(self) -> int:
        """Wait for all; after a failure the others have `GRACE` seconds, are then terminated, and then killed."""
        for ultimatum in (None, signal.SIGTERM, signal.SIGKILL):
            if ultimatum is not None:
                self._send(ultimatum)
            if self._all_end():
                break
        return self._code()

    def _all_end(self) -> bool:
        while len(self.codes) < len(self.members):
            failed = any(code not in (0, 128 + self.asked) for code in self.codes.values())
            try:
                rank = self._ended.get(timeout=GRACE if failed else None)
            except queue.Empty:
                return False
            self.codes[rank] = self.members[rank].returncode
        return True

    def _send(self, number: int) -> None:
        for rank, member in enumerate(self.members):
            if rank not in self.codes:
                member.send_signal(number)

    def _code(self) -> int:
        """Of the first that ended otherwise than well, or than by the failure of another."""
        wrong = [rank for rank, code in self.codes.items() if code]
        if not wrong:
            return 0
        telling = [rank for rank in wrong if not self._said(rank).startswith(LOST)]
        code = self.codes[(telling or wrong)[0]]
        return code if code > 0 else 128 + self.asked if self.asked else 1

    def messages(self) -> list[str]:
        """The messages of failed processes, each once, in the order of the failures."""
        texts = {rank: self._said(rank) for rank, code in self.codes.items() if code}
        telling = [text for text in texts.values() if not text.startswith(LOST)] or list(texts.values())
        whole: dict[str, str] = {}  # of those that say the same, the one that says how to go on
        for text in telling:
            whole[_gist(text)] = max(text, whole.get(_gist(text), ""), key=len)
        return list(whole.values())

    def _said(self, rank: int) -> str:
        """A process's last message; of one that left none what is known."""
        place = self.folder / str(rank)
        if place.is_file():
            return place.read_text(encoding="utf-8").rstrip("\n")
        code = self.codes[rank]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        errors = self.folder / f"{rank}.stderr"
        tail = errors.read_text(encoding="utf-8", errors="replace").splitlines()[-20:] if errors.is_file() else []
        return "\n".join([*tail, f"process {rank} {how}, without a message"])


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
