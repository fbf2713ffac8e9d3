"""What reduces to what: every line of the table holds on random batches, and its condition is needed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from support.reduction_table import REDUCTIONS, Line

from upge.testing import laws
from upge.testing.batches import PINNED, Case, seeded
from upge.testing.strategies import cases


def title(line: Line) -> str:
    return f"{line.this} is {line.that} when {line.when}".replace("`", "")


@pytest.mark.parametrize("line", REDUCTIONS, ids=title)
@example(PINNED[5])
@example(PINNED[2])
@given(cases())
def test_it_reduces(line: Line, case: Case) -> None:
    batch = line.when.make(case.batch)
    step = line.when.step
    ours, theirs = (laws.gradient(each.estimator, batch, step) for each in (line.this, line.that))
    laws.assert_same(ours, theirs)


@pytest.mark.parametrize("line", [line for line in REDUCTIONS if line.when.shapes_the_batch], ids=title)
def test_the_condition_is_needed(line: Line) -> None:
    """On some batch that doesn't meet it the two gradients differ, or the condition would say nothing."""
    batches = [case.batch for case in seeded(20)]
    pairs = [[laws.gradient(each.estimator, batch)[0] for each in (line.this, line.that)] for batch in batches]
    assert any(not torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9) for ours, theirs in pairs)


def test_no_line_stands_twice() -> None:
    assert len({title(line) for line in REDUCTIONS}) == len(REDUCTIONS) >= 20
