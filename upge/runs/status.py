"""status.json: how far a run is, and how it ended; what can't be said (SIGKILL) shows in that nothing was."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from upge.errors import InputError
from upge.files import is_count, parse_json, regular_file
from upge.runs import atomic_files

FILE = "status.json"

State = Literal["running", "finished", "stopped", "failed"]


@dataclass(frozen=True)
class Status:
    """How a run stands.

    Attributes: step: rollout batches done. pid: of the main process. reason: of a failure, one line.
    """

    state: State
    step: int
    pid: int
    reason: str = ""

    @property
    def outcome(self) -> str:
        """How the run came to its end."""
        if self.state == "running":
            return f"ended without a message after step {self.step} (killed, or out of memory)"
        return f"{self.state} after step {self.step}" + (f": {self.reason}" if self.reason else "")


def note(folder: Path, state: State, step: int, reason: str = "") -> None:
    """Write status.json: whole or not at all, but without waiting for the disk."""
    status = Status(state, step, os.getpid(), " ".join(reason.split())[:300])
    partial = folder / f"{FILE}{atomic_files.PARTIAL}"
    with atomic_files.writing(folder / FILE):
        partial.write_text(json.dumps(asdict(status), ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(folder / FILE)


def read(folder: Path) -> Status | None:
    """The status in a run folder; None where there is none, or none that can be read."""
    with suppress(OSError, ValueError, TypeError):
        status = Status(**parse_json(regular_file(folder / FILE).read_text(encoding="utf-8")))
        counts = is_count(status.step) and is_count(status.pid)
        if status.state in get_args(State) and counts and isinstance(status.reason, str):
            return status
    return None


def busy(folder: Path) -> bool:
    """Whether a process is at work in a run folder."""
    try:
        Lock(folder).release()
    except InputError:
        return True
    return False


class Lock:
    """A run folder belongs to one process as long as that lives: the system gives the lock back, whatever ends it."""

    def __init__(self, folder: Path) -> None:
        try:
            self._descriptor: int | None = os.open(folder, os.O_RDONLY)
        except OSError as error:
            raise InputError(f"{folder}: can't be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            status = read(folder)
            who = "another process" if status is None else f"process {status.pid}"
            raise InputError(f"{folder}: {who} is at work in this run folder") from None
        except OSError:  # some network drives have no such lock
            self.release()

    def holds(self, folder: Path) -> bool:
        """Whether the folder that is there now is the one that was locked."""
        if self._descriptor is None:
            return True
        try:
            return os.path.samestat(os.fstat(self._descriptor), folder.stat())
        except OSError:
            return False

    def release(self) -> None:
        """Give the folder back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
