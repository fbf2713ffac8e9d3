"""Numbers against numbers: which token differs, what was expected of it, and what it got."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.part import Part, Switch

Name: TypeAlias = Callable[[int], str]
"""How messages call the place i of a tensor."""


def names(part: Part, batch: Batch) -> Name:
    """What a part's numbers on a batch are of: a switch's of its prompts (G), all others' of its tokens (T)."""
    if not isinstance(part, Switch):
        return batch.token
    groups = torch.unique(batch.group).tolist()
    return lambda index: f"prompt {index} (group {groups[index]})"


def assert_close(
    expected: Tensor,
    got: Tensor,
    name: Name,
    how: str,
    *,
    rtol: float = 1e-9,
    atol: float = 1e-12,
    others: Callable[[], Iterable[Tensor]] = tuple,
) -> None:
    """Raise AssertionError with the first place at which two tensors differ, and say how they came about.

    Args:
        expected, got: (K,) numbers. name: what place i is called. how: what was done to get the second ones.
        atol: in units of the largest number, where that is above 1.
        others: makes what is expected of inputs that differ by rounding. A place at which these disagree lies at a
            kink, where rounding decides, and is no evidence.
    """
    expected, got = expected.detach().double(), got.detach().double()
    tolerance = atol * max(1.0, _largest(expected)) + rtol * expected.abs()
    differs = ~((got - expected).abs() <= tolerance) & ~(got == expected)
    if not bool(differs.any()):
        return
    for other in others():
        differs &= (other.detach().double() - expected).abs() <= 1e-5 * expected.abs() + 10 * tolerance
    places = differs.nonzero().flatten().tolist()
    if places:
        wanted, found = float(expected[places[0]]), float(got[places[0]])
        digits = 6 if f"{wanted:.6g}" != f"{found:.6g}" else 17
        more = f" ({len(places)} of {len(expected)} differ)" if len(places) > 1 else ""
        said = f"expected {wanted:.{digits}g}, got {found:.{digits}g}"
        raise AssertionError(f"{how}: {name(places[0])}: {said}{more}")


def _largest(x: Tensor) -> float:
    finite = x[x.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
