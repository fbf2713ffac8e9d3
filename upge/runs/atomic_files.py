"""Files that are there whole or not at all, and are still there when the machine has gone off."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

PARTIAL = ".partial"
"""What the name of a file or folder ends with while it is being written."""


def write(path: Path, text: str) -> None:
    """Write a partial file, sync it and rename it to `path`: a reader sees the old text or the new one."""
    partial = path.with_name(path.name + PARTIAL)
    with writing(path), partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    sync(path.parent)


def append(path: Path, text: str) -> None:
    """Add text to a file; it is on its way to the disk, where `sync` waits for it."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(text)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors in writing name the file, or the folder of files, that is written."""
    try:
        yield
    except SafetensorError as error:
        found = re.search(r"os error (\d+)", str(error))
        if found is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


@contextmanager
def staging_dir(place: Path) -> Iterator[Path]:
    """An empty folder beside `place` for what `publish` will rename to it; it is gone afterwards, whatever happens."""
    partial = place.with_name(place.name + PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    with writing(place):
        try:
            partial.mkdir(parents=True)
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def publish(partial: Path, place: Path) -> None:
    """Sync everything in a staging folder, and rename it to `place`; what was there is deleted."""
    for path in sorted(partial.rglob("*")):
        sync(path)
    sync(partial)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)
    sync(place.parent)
    sync(place.parent.parent)


def sync(path: Path) -> None:
    """Have the disk hold what a file or folder says."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def fingerprints(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file in a folder, by its path within it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): fingerprint(path) for path in files}


def fingerprint(path: Path) -> dict[str, Any]:
    """Size and SHA-256 of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}
