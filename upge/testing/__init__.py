"""The laws, for any part and any estimator: what `upge check` runs, and what a package's own tests call.

    from upge.testing import Case, Padded, cases, check_estimator, check_gradient, check_part

It needs `upge[test]`, which brings Hypothesis.
"""

from upge.testing.batches import Case, Prompt
from upge.testing.conformance import Finding, check_estimator, check_part, examined
from upge.testing.drawing import cases, parts
from upge.testing.laws import check_gradient, reaches_a_kink
from upge.testing.padded import Padded

__all__ = [
    "Case",
    "Finding",
    "Padded",
    "Prompt",
    "cases",
    "check_estimator",
    "check_gradient",
    "check_part",
    "examined",
    "parts",
    "reaches_a_kink",
]
