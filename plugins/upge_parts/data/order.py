"""Which problem comes when: seeded epochs that need no state."""

from __future__ import annotations

import random


def positions(size: int, seed: int, step: int, count: int) -> list[int]:
    """The indices into `size` problems that rollout batch `step` of `count` prompts takes.

    Every epoch visits each problem once, in an order of its own that depends on the seed alone; a batch may reach into
    the next epoch. Nothing is streamed, so a resumed run goes on where it was. Raises ValueError for no problems.
    """
    if size < 1:
        raise ValueError("there are no problems to take")
    first = step * count
    orders: dict[int, list[int]] = {}
    taken = []
    for place in range(first, first + count):
        epoch, index = divmod(place, size)
        if epoch not in orders:
            orders[epoch] = random.Random(f"{seed}/{epoch}").sample(range(size), size)
        taken.append(orders[epoch][index])
    return taken
