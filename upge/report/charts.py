"""Curves: series of points made ready to be drawn, with axes, legend, and what is shown under the pointer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import ceil, floor, isfinite, log2, log10
from statistics import fmean
from typing import Any

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


COLOURS = 8
"""How many colours the style sheet has for series."""

MOST_POINTS = 300
"""A longer curve is drawn by the means of neighbouring points."""

SMOOTHED_FROM = 30
"""Curves of so many points get a bold line of their moving mean."""


@dataclass(frozen=True)
class Point:
    """A value at x; the ends of its interval, where it has one."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """A curve with its name; `colour` counts from 0."""

    label: str
    points: Sequence[Point]
    colour: int = 0


@dataclass(frozen=True)
class Line:
    """A curve as the page draws it: SVG paths, and dots where there are few points."""

    label: str
    colour: int
    path: str
    bold: str
    area: str
    dots: tuple[tuple[float, float], ...]
    last: str


class Chart:
    """One drawing of some curves.

    Args:
        title, note: what it shows, and how. series: the curves; points that are not finite are left out.
        share: the values are shares, so the axis is from 0 to 1. log_x: by log₂, with a tick at each x. log_y: by log₂.
    """

    def __init__(
        self,
        title: str,
        series: Sequence[Series],
        *,
        note: str = "",
        across: str = "step",
        share: bool = False,
        log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        self.title, self.across, self._share, self._log_x, self._log_y = title, across, share, log_x, log_y
        found = [Series(each.label, _finite(each.points), each.colour % COLOURS) for each in series]
        self.wide = max((_width(each.points) for each in found), default=1)
        self.series = [
            Series(each.label, thinned(each.points, self.wide), each.colour) for each in found if each.points
        ]
        self.note = f"{note}{'; ' if note else ''}means of {self.wide} points" if self.wide > 1 else note

    @cached_property
    def frame(self) -> Frame:
        """What the drawing shows."""
        points = [point for each in self.series for point in each.points]
        values = [value for p in points for value in (p.y, p.low, p.high) if value is not None]
        return framed([point.x for point in points], values, share=self._share, log_x=self._log_x, log_y=self._log_y)

    @property
    def down(self) -> list[Tick]:
        """Ticks of the y axis."""
        return self.frame.down()

    @property
    def marks(self) -> list[Tick]:
        """Ticks of the x axis."""
        xs = sorted({point.x for each in self.series for point in each.points})
        return self.frame.across(xs if self._log_x else ())

    @property
    def lines(self) -> list[Line]:
        """The curves, ready to be drawn."""
        return [self._line(each) for each in self.series]

    def _line(self, series: Series) -> Line:
        frame, points = self.frame, series.points
        smooth = smoothed(points) if len(points) >= SMOOTHED_FROM else []
        within = [point for point in points if point.low is not None and point.high is not None]
        edges = [(p.x, p.high) for p in within] + [(p.x, p.low) for p in reversed(within)]
        return Line(
            series.label,
            series.colour,
            path=_path(frame, [(point.x, point.y) for point in points]),
            bold=_path(frame, [(point.x, point.y) for point in smooth]),
            area=_path(frame, [(x, y) for x, y in edges if y is not None]),
            dots=tuple((frame.x(p.x), frame.y(p.y)) for p in points) if len(points) <= 20 else (),
            last=written(points[-1].y),
        )

    @property
    def data(self) -> dict[str, Any]:
        """What the page shows under the pointer."""
        frame = self.frame
        series = [
            {
                "label": s.label,
                "colour": s.colour,
                "points": [[p.x, frame.x(p.x), p.y, p.low, p.high] for p in s.points],
            }
            for s in self.series
        ]
        return {"across": self.across, "series": series}


def curve(label: str, points: Sequence[tuple[float, float]], colour: int = 0) -> Series:
    """A series of (x, y) pairs."""
    return Series(label, [Point(x, y) for x, y in points], colour)


def smoothed(points: Sequence[Point]) -> list[Point]:
    """The mean over each point's neighbours: a window of a fifteenth of the curve, cut off at its ends."""
    reach = max(1, len(points) // 30)
    windows = (points[max(0, i - reach) : i + reach + 1] for i in range(len(points)))
    return [Point(point.x, fmean(p.y for p in window)) for point, window in zip(points, windows, strict=True)]


def thinned(points: Sequence[Point], wide: int) -> list[Point]:
    """The means of each `wide` neighbouring points."""
    if wide == 1:
        return list(points)
    pieces = [
        [point for _, point in piece] for _, piece in groupby(enumerate(points), key=lambda each: each[0] // wide)
    ]
    return [Point(fmean(p.x for p in piece), fmean(p.y for p in piece)) for piece in pieces]


def _width(points: Sequence[Point]) -> int:
    return max(1, -(-len(points) // MOST_POINTS))


def _finite(points: Sequence[Point]) -> list[Point]:
    return [point for point in points if isfinite(point.x) and isfinite(point.y)]


def _path(frame: Frame, points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{frame.x(x)} {frame.y(y)}" for x, y in points) if points else ""
