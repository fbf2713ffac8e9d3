"""Stopping a run between two steps: SIGINT and SIGTERM are remembered, and all ranks stop at the same place."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
from accelerate import Accelerator

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The run was asked to stop, and has: its checkpoint is written. Attributes: code: 130 or 143, to exit with."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.code = 128 + number


class Stop:
    """Whether a run has been asked to stop.

    The first signal is remembered; a second one ends the process at once. Under torchrun a second one is torchrun
    handing on what the terminal has sent already, and torchrun itself ends what takes too long.
    """

    def __init__(self) -> None:
        self.number = 0
        self._handed_on = "TORCHELASTIC_RUN_ID" in os.environ

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, signals are remembered; outside the main thread nothing can be, and they do what they did."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._asked) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def agreed(self, accelerator: Accelerator) -> int:
        """The signal that some rank has been sent, or 0; all ranks call this together and get the same answer."""
        if accelerator.num_processes == 1:
            return self.number
        asked = torch.tensor([self.number], device=accelerator.device)
        return int(accelerator.gather(asked).max())

    def _asked(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number and not self._handed_on:
            raise Stopped("ended at once; what was done since the last checkpoint will be done again", number)
        if not self.number and os.environ.get("RANK", "0") == "0":
            os.write(2, b"\nstopping after this step; a second signal ends the run at once\n")  # print may be at work
        self.number = self.number or number
