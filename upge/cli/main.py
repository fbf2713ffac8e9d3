"""The console script: every verb at one app."""

from __future__ import annotations

import signal
from types import FrameType

from upge.cli import (
    bench,  # noqa: F401
    check,  # noqa: F401
    compare,  # noqa: F401
    diff,  # noqa: F401
    eval_,  # noqa: F401
    explain,  # noqa: F401
    list_,  # noqa: F401
    new,  # noqa: F401
    report,  # noqa: F401
    run,  # noqa: F401
    schema,  # noqa: F401
    show,  # noqa: F401
    study,  # noqa: F401
    validate,  # noqa: F401
)
from upge.cli.app import app, reported
from upge.errors import Terminated


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminated)
    with reported():
        app(standalone_mode=True)


def _terminated(signum: int, frame: FrameType | None) -> None:
    del frame
    raise Terminated(128 + signum)
