"""A folder of one's own: chosen and locked in one go, so that no other process takes it too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from upge.errors import InputError
from upge.runs.folder import free
from upge.runs.status import Lock


@contextmanager
def claimed(wanted: Path, *, resume: bool = False) -> Iterator[Path]:
    """The folder, or with the first number added that makes it nobody's; to `resume`, the folder itself.

    It belongs to this process while open, and is gone afterwards if nothing was written to it.
    Raises InputError: another process is at work there, or it can't be made.
    """
    # os.path and not pathlib, which raises for a name that is too long.
    missing = [path for path in (wanted, *wanted.parents) if not os.path.exists(path)]  # noqa: PTH110
    folder, lock = (wanted, Lock(wanted)) if resume else _free(wanted)
    try:
        yield folder
    finally:
        with suppress(OSError):  # something is in it
            for made in dict.fromkeys((folder, *missing)):
                made.rmdir()
        lock.release()


def _free(wanted: Path) -> tuple[Path, Lock]:
    taken: set[Path] = set()
    while True:
        try:
            folder = free(wanted, besides=taken)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{wanted}: can't be made: {error.strerror}") from error
        try:
            lock = Lock(folder)
        except InputError:  # another process has just chosen it too
            taken.add(folder)
            continue
        if lock.holds(folder) and not any(folder.iterdir()):
            return folder, lock
        lock.release()  # it has been filled, or removed and made anew, since it was chosen
