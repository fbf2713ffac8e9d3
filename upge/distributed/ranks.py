"""Communication between the ranks of a run: broadcasts, sums and gathered values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

from upge.errors import InputError

Made = TypeVar("Made")
Item = TypeVar("Item")


@dataclass(frozen=True)
class Ranks:
    """The processes of a launcher; one alone is a team too. All of them call each method together."""

    accelerator: Accelerator

    @property
    def rank(self) -> int:
        """Which of the processes this is; 0 is the main one."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes)

    def broadcast(self, make: Callable[[], Made]) -> Made:
        """The main process's result, on all ranks. An InputError is raised on all ranks too."""
        if self.world == 1:
            return make()
        outcome: list[Any] = [None, None]
        if self.rank == 0:
            try:
                outcome[0] = make()
            except InputError as error:
                outcome[1] = error
        broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise outcome[1]
        made: Made = outcome[0]
        return made

    def sum(self, x: Tensor) -> Tensor:
        """The sum of a tensor over all."""
        if self.world == 1:
            return x
        total: Tensor = self.accelerator.reduce(x.to(self.accelerator.device), "sum")
        return total.to(x.device)

    def all_gather(self, mine: list[Item]) -> list[Item]:
        """Everybody's, in the order of ranks."""
        return mine if self.world == 1 else list(gather_object(mine))
