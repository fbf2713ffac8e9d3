"""Which problem comes when: seeded epochs that need no state."""

from __future__ import annotations

import random
from functools import lru_cache


def positions(size: int, seed: int, step: int, count: int) -> list[int]:
    """The indices into `size` problems that rollout batch `step` of `count` prompts takes.

    Every epoch visits each problem once, in an order of its own that depends on the seed alone; a batch may reach into
    the next epoch. Nothing is streamed, so a resumed run goes on where it was. Raises ValueError for no problems.
    """
    if size < 1:
        raise ValueError("there are no problems to take")
    first = step * count
    places = (divmod(place, size) for place in range(first, first + count))
    return [shuffled(size, f"{seed}/{epoch}")[index] for epoch, index in places]


@lru_cache(maxsize=16)  # problems may be taken one by one, and from several sources in turn
def shuffled(size: int, key: str) -> tuple[int, ...]:
    """0 … size − 1 in the order that this key stands for."""
    return tuple(random.Random(key).sample(range(size), size))
