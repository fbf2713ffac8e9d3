"""Which cases of many the default tier tries: the others have the mark `heavy`, and CI runs them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import Any

import pytest
from _pytest.mark.structures import ParameterSet
from hypothesis import settings

heavy = pytest.mark.heavy

FEWER = max(5, settings().max_examples // 4)
"""Examples of each case of a law that is put to at least four: 20 in all, in the default tier."""
fewer = settings(max_examples=FEWER)


def spread(cases: Iterable[Any], kind: Callable[[Any], Hashable], each: int = 1) -> list[Any]:
    """All cases, for `parametrize`: the first of each kind, or the first few, for the default tier, the rest heavy.

    A case is a value, a tuple of values, or a `pytest.param`; `kind` is asked about the value, or the tuple.
    """
    counts: dict[Hashable, int] = {}
    found = []
    for case in cases:
        several = isinstance(case, tuple) and not (isinstance(case, ParameterSet) and len(case.values) == 1)
        param = case if isinstance(case, ParameterSet) else pytest.param(*(case if several else [case]))
        key = kind(param.values if several else param.values[0])
        counts[key] = counts.get(key, 0) + 1
        rest = counts[key] > each
        found.append(pytest.param(*param.values, id=param.id, marks=[*param.marks, *([heavy] if rest else [])]))
    return found
