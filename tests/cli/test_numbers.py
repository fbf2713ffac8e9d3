"""How numbers are printed: short, whatever their size."""

from __future__ import annotations

import pytest

from upge.tables import fixed


@pytest.mark.parametrize(
    ("number", "digits", "said"),
    [
        (0.5, 3, "0.500"),
        (-12.34567, 2, "-12.35"),
        (999999.0, 3, "999999.000"),
        (1e30, 3, "1e+30"),
        (-1.23456e8, 3, "-1.235e+08"),
        (1e6, 1, "1e+06"),
        (float("nan"), 3, "nan"),
        (float("inf"), 3, "inf"),
    ],
)
def test_a_number_is_fixed_or_has_a_power_of_ten(number: float, digits: int, said: str) -> None:
    assert fixed(number, digits) == said
