"""Reading files that anybody may have written: pipes, devices and JSON that Python's parser chokes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from upge.errors import InputError


def regular_file(path: Path) -> Path:
    """The path, if what is there may be opened: reading a pipe or a device may block, or never end.

    Raises:
        InputError: it is neither a file nor a folder. What isn't there is left to whoever opens it.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise InputError(f"{path}: can't be read: it is no regular file")
    return path


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for what is nested too deeply to be parsed."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
