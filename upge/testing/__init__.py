"""The laws, for any part and any estimator: what `upge check` runs, and what a package's own tests call.

    from upge.testing import Case, Padded, cases, check_estimator, check_gradient, check_part

Drawing batches and parts needs Hypothesis, which `upge[test]` brings.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upge.testing.batches import Case as Case
    from upge.testing.batches import Prompt as Prompt
    from upge.testing.conformance import Finding as Finding
    from upge.testing.conformance import check_estimator as check_estimator
    from upge.testing.conformance import check_part as check_part
    from upge.testing.conformance import examined as examined
    from upge.testing.conformance import examined_estimator as examined_estimator
    from upge.testing.laws import check_gradient as check_gradient
    from upge.testing.laws import reaches_a_kink as reaches_a_kink
    from upge.testing.padded import Padded as Padded
    from upge.testing.scenes import batch_for as batch_for
    from upge.testing.strategies import cases as cases
    from upge.testing.strategies import parts as parts

_HOMES = {
    "batches": ("Case", "Prompt"),
    "conformance": ("Finding", "check_estimator", "check_part", "examined", "examined_estimator"),
    "strategies": ("cases", "parts"),
    "laws": ("check_gradient", "reaches_a_kink"),
    "padded": ("Padded",),
    "scenes": ("batch_for",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'upge.testing' has no attribute '{name}'")
    return getattr(importlib.import_module(f"upge.testing.{_HOME_OF[name]}"), name)
