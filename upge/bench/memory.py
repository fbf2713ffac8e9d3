"""How much memory something takes at its peak, by the operating system's count."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from upge.errors import InputError

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(action: Callable[[], Any]) -> int:
    """Bytes of resident memory that `action` takes at most, above what this process has before it.

    Meant for a process of its own: what an earlier action has freed, and the allocator has kept, would count as had.

    Raises: InputError: the system keeps no such account; Linux does.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, or it would hide new use
        _RESET.write_text("5")  # from now on the high-water mark counts anew: proc(5)
    except (OSError, AttributeError) as error:
        raise InputError(f"peak memory can't be measured on this system: {error}") from error
    before = _read("VmRSS")
    action()
    return _read("VmHWM") - before


def _read(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None, f"proc(5) promises {name}"
    return int(found[1]) * 1024
