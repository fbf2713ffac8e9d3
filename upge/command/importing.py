"""Imports at the pace that a command needs."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Look for no garbage among what is imported here, neither now nor later.

    torch and the parts make a million objects that all stay; searching them, again and again while they are made and
    once more at the end of the process, takes longer than to check a recipe.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if enabled:
            gc.enable()
