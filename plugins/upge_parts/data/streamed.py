"""The data session of a stream: problems too many to hold, in an order that needs no state all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from upge import InputError, Problem
from upge_parts.data.order import shuffled
from upge_parts.data.session import Stateless


@dataclass
class Streamed(Stateless):
    """A stream read window by window, each shuffled by itself; what comes when depends on the step and the seed alone.

        place k of epoch e  →  row  w·W + order(seed, e, w)[k mod W],   w = ⌊k/W⌋

    W is the window. The stream ends an epoch; the last window is shorter. Only one window is held. To go back, or on
    from where a resumed run was, the stream is read again from its start: exact, and as slow as reading is.

    Attributes:
        opened: begins the stream anew. made: a problem of a row and its number, from 0.
        window: W, in rows. size: of the stream, once its end was seen.
    """

    opened: Callable[[], Iterator[Mapping[str, Any]]]
    made: Callable[[Mapping[str, Any], int], Problem]
    evaluation: Mapping[str, Sequence[Problem]]
    seed: int
    window: int
    size: int | None = None
    _rows: Iterator[Mapping[str, Any]] = field(default_factory=lambda: iter(()))
    _held: tuple[int, list[Problem]] | None = None

    def take(self, step: int, count: int) -> list[Problem]:
        """The problems of one rollout batch."""
        return [self._problem(place) for place in range(step * count, (step + 1) * count)]

    def _problem(self, place: int) -> Problem:
        epoch, within = divmod(place, self.size) if self.size is not None else (0, place)
        window, index = divmod(within, self.window)
        held = self._read(window)
        if index >= len(held):  # beyond the end, which has now been seen
            return self._problem(place)
        return held[shuffled(len(held), f"{self.seed}/{epoch}/{window}")[index]]

    def _read(self, window: int) -> list[Problem]:
        """The problems of a window; none of one beyond the end, whose size is known after that."""
        if self._held is not None and self._held[0] == window:
            return self._held[1]
        at = -1 if self._held is None else self._held[0]
        if window <= at or self._held is None:
            self._rows, at = self.opened(), -1
        rows: list[Mapping[str, Any]] = []
        for number in range(at + 1, window + 1):
            rows = list(islice(self._rows, self.window))
            if len(rows) < self.window:
                self._ended(number * self.window + len(rows))
            if not rows or (len(rows) < self.window and number < window):
                self._held = None
                return []
        first = window * self.window
        self._held = window, [self.made(row, first + index) for index, row in enumerate(rows)]
        return self._held[1]

    def _ended(self, size: int) -> None:
        if size == 0:
            raise InputError("the stream has no problems")
        self.size = size
