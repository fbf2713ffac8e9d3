"""From values to places on a drawing: a frame, round ticks, and numbers as people write them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log2, log10

WIDTH, HEIGHT = 420.0, 216.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 410.0, 10.0, 182.0
"""The plotted area within a drawing; axes' labels stand outside it."""


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: where it is on the drawing, and what it says."""

    at: float
    text: str


@dataclass(frozen=True)
class Frame:
    """What a drawing shows: x from `left` to `right`, y from `low` to `high`; each perhaps by log₂."""

    left: float
    right: float
    low: float
    high: float
    log_x: bool = False
    log_y: bool = False

    def x(self, value: float) -> float:
        """Where a value lies across the drawing."""
        return round(LEFT + _share(value, self.left, self.right, log=self.log_x) * (RIGHT - LEFT), 1)

    def y(self, value: float) -> float:
        """Where a value lies down the drawing."""
        return round(BOTTOM - _share(value, self.low, self.high, log=self.log_y) * (BOTTOM - TOP), 1)

    def down(self) -> list[Tick]:
        """The ticks of the y axis."""
        chosen = doublings(self.low, self.high) if self.log_y else ticks(self.low, self.high)
        return [Tick(self.y(value), written(value)) for value in chosen]

    def across(self, values: Sequence[float] = ()) -> list[Tick]:
        """The ticks of the x axis: round numbers, or those given."""
        chosen = values or [value for value in ticks(self.left, self.right, 6) if value == int(value)]
        return [Tick(self.x(value), written(value)) for value in chosen]


def framed(
    xs: Sequence[float], ys: Sequence[float], *, share: bool = False, log_x: bool = False, log_y: bool = False
) -> Frame:
    """The frame in which all these values lie; `share`: y is from 0 to 1 at least.

    Unless y goes by log₂, it has a little room, and begins at 0 where that doesn't flatten what there is to see.
    """
    left, right = (min(xs), max(xs)) if xs else (0.0, 1.0)
    low, high = (min(ys), max(ys)) if ys else (0.0, 1.0)
    low, high = (low, high) if log_y else _roomy(low, high, share=share)
    return Frame(left, right if right > left else left + 1.0, low, high if high > low else low + 1.0, log_x, log_y)


def _roomy(low: float, high: float, *, share: bool) -> tuple[float, float]:
    if share:
        low, high = min(low, 0.0), max(high, 1.0)
    elif 0 <= low < 0.6 * high:
        low = 0.0
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return low if low == 0 and high > 0 else low - room, high if share and high == 1 else high + room


def _share(value: float, low: float, high: float, *, log: bool) -> float:
    """How far a value is from `low` to `high`, as a share."""
    low, high, value = (log2(each) if log else each for each in (low, high, value))
    return (value - low) / ((high - low) or 1.0)


def doublings(low: float, high: float) -> list[float]:
    """The powers of two between two values above 0."""
    return [2.0**power for power in range(ceil(log2(low) - 1e-9), floor(log2(high) + 1e-9) + 1)]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two values, `most` of them at most."""
    if not high > low:
        return [low]
    raw = (high - low) / most
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * (1 - 1e-9))
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [round(index * step, 12) if step > 1e-9 else index * step for index in range(first, last + 1)]


def written(value: float) -> str:
    """A number as short as it can be said to four digits: 0.5, 12000, 2·10⁻⁵."""
    if not isfinite(value):
        return str(value)
    size = abs(value)
    if size == 0 or 1e-3 <= size < 1e6:
        text = f"{value:.0f}" if size >= 1e3 else f"{value:.4g}"
        return text.replace("-", "−")
    digits, _, power = f"{value:.3e}".partition("e")
    digits = digits.rstrip("0").rstrip(".")
    raised = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return (f"10{raised}" if digits == "1" else f"{digits}·10{raised}").replace("-", "−")
