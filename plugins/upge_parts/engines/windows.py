"""Keys and values of rows that come and go: one buffer a layer, of which every row uses its last columns."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer


class Place:
    """Which part of the layers' buffers is in use; all layers share one.

    The rows end together, at column `end`, so that all write their next token there; a row of n tokens begins at
    column `end` − n. What lies before that is masked.

    Attributes:
        rows, columns: how large a buffer is. used: how many of its rows are rows of the batch.
        end: the first column that isn't written yet. width: how many columns before it the longest row has.
    """

    def __init__(self, rows: int) -> None:
        self.rows, self.columns = rows, 0
        self.used, self.end, self.width = 0, 0, 0


class Window(DynamicLayer):
    """One layer's keys and values, (rows, heads, columns, size) each; nothing is copied to add a token."""

    def __init__(self, place: Place) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.place = place
        self.buffers: list[Tensor] = []
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Write the newest column, (B, heads, 1, size), and return the columns up to it of all rows of the batch."""
        place = self.place
        self.ready((key_states, value_states))
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[: place.used, :, place.end] = states[:, :, 0]
        columns = slice(place.end - place.width, place.end + 1)
        keys, values = (buffer[: place.used, :, columns] for buffer in self.buffers)
        return keys, values

    def get_seq_length(self) -> int:
        """How many tokens came before the newest."""
        return self.place.width

    def ready(self, like: Sequence[Tensor]) -> None:
        """See to it that there are buffers, for such keys and values."""
        if not self.buffers:
            # Zeros, since a masked column counts 0 times what is in it, which must be finite.
            self.buffers = [
                each.new_zeros(self.place.rows, each.shape[1], self.place.columns, each.shape[3]) for each in like
            ]

    def put(self, first: int, count: int, states: Sequence[Tensor]) -> None:
        """Give `count` rows from `first` on the same keys and values, (heads, length, size) each, to begin with."""
        end = self.place.end
        for buffer, each in zip(self.buffers, states, strict=True):
            buffer[first : first + count, :, end - each.shape[1] : end] = each

    def move(self, sources: Tensor, targets: Tensor) -> None:
        """Copy whole rows over others."""
        columns = slice(self.place.end - self.place.width, self.place.end)
        for buffer in self.buffers:
            buffer[targets, :, columns] = buffer[sources, :, columns]

    def resize(self, rows: int, columns: int) -> None:
        """Copy what is in use to the beginning of buffers of another size."""
        place = self.place
        for index, old in enumerate(self.buffers):
            buffer = old.new_zeros(rows, old.shape[1], columns, old.shape[3])
            buffer[: place.used, :, : place.width] = old[: place.used, :, place.end - place.width : place.end]
            self.buffers[index] = buffer


class Windows(Cache):
    """The keys and values of all layers.

    Args:
        layers: how many layers the model has.
        rows: the most rows of a batch.
        room: the most tokens that a row may get.
    """

    def __init__(self, layers: int, rows: int, room: int) -> None:
        self.place, self.room = Place(rows), room
        self.windows = [Window(self.place) for _ in range(layers)]
        super().__init__(layers=list(self.windows))

    def begin(self, longest: int) -> None:
        """Make an empty batch ready for rows of up to `longest` tokens."""
        place = self.place
        place.used, place.width, place.end = 0, 0, longest
        if place.columns <= longest:
            self._resize(place.rows, longest)

    def grow(self, *, keep_rows: bool) -> None:
        """See to it that there is a column to write; without `keep_rows`, free rows may go for good."""
        place = self.place
        if place.end == place.columns:
            self._resize(place.rows if keep_rows else place.used, place.width)
            place.end = place.width

    def enter(self, prompts: DynamicCache, lengths: Sequence[int], counts: Sequence[int]) -> None:
        """Add `counts[i]` rows that begin with the first `lengths[i]` tokens of row i of `prompts`."""
        for window, layer in zip(self.windows, prompts.layers, strict=True):
            first = self.place.used
            assert isinstance(layer, DynamicLayer)
            keys, values = layer.keys, layer.values
            assert keys is not None
            assert values is not None
            window.ready((keys, values))
            for index, (length, count) in enumerate(zip(lengths, counts, strict=True)):
                window.put(first, count, (keys[index, :, :length], values[index, :, :length]))
                first += count

    def move(self, moves: Sequence[tuple[int, int]], device: torch.device) -> None:
        """Copy rows over others: (source, target) pairs."""
        sources, targets = torch.tensor(moves, device=device).unbind(1)
        for window in self.windows:
            window.move(sources, targets)

    def _resize(self, rows: int, width: int) -> None:
        columns = width + min(self.room, max(128, width))
        for window in self.windows:
            window.resize(rows, columns)
        self.place.rows, self.place.columns = rows, columns
