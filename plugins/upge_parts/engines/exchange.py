"""How weights get from the trainer to an engine's processes: through files, in the Hub's format."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from upge import Context, Policy


class Exchange:
    """A folder that all ranks see; the first of them writes to it what all of them have.

    Args:
        folder: where policies are written.
        rank, world: this process among the data-parallel ones.
    """

    def __init__(self, folder: Path, *, rank: int, world: int) -> None:
        self.folder, self.rank, self.world, self.written = folder, rank, world, 0

    @contextmanager
    def copy(self, policy: Policy) -> Iterator[Path]:
        """The policy's model and tokenizer in a folder that is there until all ranks leave the block."""
        self.written += 1
        place = self.folder / str(self.written)  # a new one each time: the last one's files may still be mapped
        if self.rank == 0 or policy.sharded:
            policy.save(place, writes=self.rank == 0)
        self._wait()
        yield place
        self._wait()
        if self.rank == 0:
            shutil.rmtree(place)

    def _wait(self) -> None:
        if self.world > 1:
            PartialState().wait_for_everyone()


@contextmanager
def opened(context: Context, parent: str | None = None) -> Iterator[Exchange]:
    """An exchange in a temporary folder of the first rank's, inside `parent` or TMPDIR, which is gone afterwards."""
    if context.rank > 0:
        yield Exchange(_agreed("", context), rank=context.rank, world=context.world)
        return
    with tempfile.TemporaryDirectory(prefix="upge-weights-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield Exchange(_agreed(folder, context), rank=0, world=context.world)


def _agreed(folder: str, context: Context) -> Path:
    named = [folder]
    if context.world > 1:
        broadcast_object_list(named)
    return Path(named[0])
