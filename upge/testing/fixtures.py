"""What the laws are asked on: an estimator around one part, and the context and the world in which sessions open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from upge.estimator.estimator import Estimator
from upge.estimator.view import View
from upge.part import Advantage, Mask, Part, Reduction, Selection, Shaping, Switch
from upge.types import Context


class Given(Advantage):
    """Advantages of both signs, given token by token in the batch's field `value`."""

    needs = frozenset({"value"})

    def __call__(self, b: View) -> Tensor:
        """(T,) the field."""
        return b.value


CLIP = {"use": "clip", "low": 0.2, "high": 0.2}
EXPLORE = {
    "source": "rollouts",
    "mask": CLIP,
    "denominator": "old",
    "advantage": "group_mean",
    "reduction": "sequence_mean",
}
IMITATE = {
    "source": "demonstrations",
    "denominator": "current",
    "advantage": "one",
    "reduction": "token_mean",
    "weight": 0.5,
}
GATE = {"use": "success_rate", "above": "explore", "otherwise": "imitate"}


def host(part: Part) -> Estimator:
    """An estimator in which this part has a say, among parts that distinguish tokens."""
    names = part.terms() if isinstance(part, Switch) else ("explore", "imitate")
    terms: dict[str, dict[str, Any]] = {
        name: dict(IMITATE if index % 2 else EXPLORE) for index, name in enumerate(sorted(names))
    }
    block: dict[str, Any] = {"terms": terms}
    if isinstance(part, Switch | Shaping):
        block[part.slot] = [part]
        return Estimator.model_validate(block)
    terms["explore"]["select" if isinstance(part, Selection) else part.slot] = part
    if isinstance(part, Mask | Selection):
        terms["explore"]["advantage"] = Given()
    if isinstance(part, Reduction):  # with a gate, so that some rows are inactive
        terms["imitate"]["reduction"] = part
        block["switch"] = [GATE]
    return Estimator.model_validate(block)


@contextmanager
def world(number: int) -> Iterator[None]:
    """Another machine at another time: global generators and the clock stand elsewhere. They are put back."""
    import random

    import numpy

    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state()
    torch.manual_seed(number)
    random.seed(number)
    numpy.random.seed(number)
    try:
        with mock.patch("time.time", return_value=1e9 + 1e6 * number):
            yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        numpy.random.set_state(states[2])


def shuffled(count: int) -> list[int]:
    """0…count−1 in another order, always the same."""
    order = list(range(count))
    Random(count).shuffle(order)
    return order


def shown(value: object) -> str:
    """A value for a message, not too long."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def told_apart(was: str, now: str) -> str:
    """What was expected and what came, from the first character on in which two texts differ."""
    at = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    return f"expected …{shown(was[at:])}, got …{shown(now[at:])}"


def context(**different: Any) -> Context:
    """What sessions are opened with."""
    return Context(**{"seed": 3, **different})
