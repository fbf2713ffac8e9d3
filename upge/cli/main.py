"""The console script: every verb at one app."""

from __future__ import annotations

import signal
from types import FrameType

from upge.cli.app import app
from upge.cli.errors import reported
from upge.errors import Terminated


def main() -> None:
    """The console script."""
    signal.signal(signal.SIGTERM, _terminated)
    with reported():
        app(standalone_mode=True)


def _terminated(signum: int, frame: FrameType | None) -> None:
    del frame
    raise Terminated(128 + signum)
