"""Several ranks in one process: a thread each, whose sums really are over all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from upge.estimator.view import Reduce

Result = TypeVar("Result")


class _LeftError(Exception):
    """Another rank has failed, which is what to tell."""


class _Meeting:
    """Where the ranks meet to sum: a sum is there once every rank has brought its summand."""

    def __init__(self, ranks: int) -> None:
        self.ranks, self.changed = ranks, threading.Condition()
        self.brought: dict[int, Tensor] = {}
        self.sums: list[Tensor] = []
        self.gone: set[int] = set()
        self.failed = False

    def sum(self, rank: int, x: Tensor) -> Tensor:
        with self.changed:
            number = len(self.sums)
            self.brought[rank] = x
            if len(self.brought) == self.ranks:
                self.sums.append(torch.stack([self.brought[r] for r in range(self.ranks)]).sum(0))
                self.brought = {}
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(self.sums) > number or self.failed or bool(self.gone))
            if len(self.sums) > number:
                return self.sums[number]
            if self.failed:
                raise _LeftError
            raise AssertionError(
                f"rank {rank} calls b.total, and rank {min(self.gone)} has ended without: a real run would hang. "
                "Call it on every rank alike, never behind an `if` on data"
            )

    def leave(self, rank: int, *, failed: bool) -> None:
        with self.changed:
            self.gone.add(rank)
            self.failed |= failed
            self.changed.notify_all()


def lockstep(ranks: int, work: Callable[[int, Reduce], Result]) -> list[Result]:
    """Runs `work(rank, reduce)` for every rank at once, in threads; `reduce` really sums over the ranks.

    Raises what a rank raised, and AssertionError where one asks for more sums than another.
    """
    meeting = _Meeting(ranks)
    results: list[Any] = [None] * ranks
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        failed = True
        try:
            results[rank] = work(rank, lambda x: meeting.sum(rank, x))
            failed = False
        except BaseException as error:
            errors.append(error)
        finally:
            meeting.leave(rank, failed=failed)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise next((e for e in errors if not isinstance(e, _LeftError)), errors[0])
    return results
