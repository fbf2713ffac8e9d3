"""`upge check` finds deliberately wrong parts of every slot, and nothing in unusual ones that are right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings
from support.right_parts import RIGHT
from support.wrong_parts import (
    advantages,
    data,
    denominators,
    engines,
    fields,
    masks,
    reductions,
    rewards,
    selections,
    shapings,
    switches,
    weights,
)

from upge.part import Part
from upge.testing import examined

MODULES = (
    *(masks, denominators, advantages, switches, reductions, shapings, selections, weights),
    *(rewards, data, engines, fields),
)


def wrong_in(module: Any) -> list[type[Part]]:
    """The wrong parts of a file, in its order."""
    found = [kind for kind in vars(module).values() if isinstance(kind, type) and kind.__module__ == module.__name__]
    return [kind for kind in found if kind.__name__ != "Base"]


WRONG = [kind for module in MODULES for kind in wrong_in(module)]
FIRST = [wrong_in(module)[0] for module in MODULES]
ALL = settings().max_examples >= 100
"""Whether every wrong part is tried, as with UPGE_PROFILE=ci, or one a slot."""
RIGHT_EXAMPLES = min(50, max(5, settings().max_examples // 5))
TELLING = r"expected .*, got |raised |in place|draws from|carries gradient|returned |without declaring|no method of it"
"""What the message of a fault has: what was expected and what came, or what the part did."""


def broken(kind: type[Part], examples: int) -> Iterator[str]:
    """What is found, law by law, but for what the docstring lacks."""
    for finding in examined(kind, examples=examples):
        if finding.failure is not None and "docstring" not in finding.law:
            yield str(finding)


@pytest.mark.draws
@pytest.mark.parametrize("kind", WRONG if ALL else FIRST, ids=lambda kind: f"{kind.slot}-{kind.__name__}")
def test_a_wrong_part_is_found(kind: type[Part]) -> None:
    found = []
    for examples in (10, 50) if ALL else (10,):  # most are found among the first few, and a fault of one law is enough
        for text in broken(kind, examples):
            found.append(text)
            if re.search(TELLING, text):
                return
    assert found, f"nothing is found: {kind.__doc__}"
    raise AssertionError(f"nothing that is found tells what was expected: {found}")


@pytest.mark.draws
@pytest.mark.parametrize("kind", RIGHT, ids=lambda kind: f"{kind.slot}-{kind.__name__}")
def test_nothing_is_found_in_a_right_part(kind: type[Part]) -> None:
    assert list(broken(kind, RIGHT_EXAMPLES)) == []


def test_there_are_enough_wrong_parts_of_every_kind() -> None:
    assert len(WRONG) >= 60
    assert min(len(wrong_in(module)) for module in MODULES) >= 5
    assert len({kind.__doc__ for kind in WRONG}) == len(WRONG)
    for of in ("ONE_RANK", "CORNER"):
        named = [(module, name) for module in MODULES for name in getattr(module, of)]
        assert all(getattr(module, name) in WRONG for module, name in named)
        assert len(named) >= 10
