"""A picture of curves by itself: an SVG file for a document, light or dark as its reader's pages are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from upge.errors import InputError
from upge.report.charts import HEIGHT, LEFT, WIDTH, Chart
from upge.report.html import picture_of, written_to

COLUMNS = 2
CAPTION, LINE, LETTER, SWATCH = 34.0, 20.0, 6.8, 36.0
"""Pixels: for a panel's caption, for a line of the key, for a letter in it, and around its swatch."""


@dataclass(frozen=True)
class Panel:
    """A chart and where it stands."""

    chart: Chart
    x: float
    y: float


@dataclass(frozen=True)
class Key:
    """What a colour means, and where that is said."""

    label: str
    colour: int
    x: float
    y: float


def write_figure(charts: Sequence[Chart], place: Path) -> Path:
    """Write a picture. Raises InputError: there is nothing to draw, or `place` can't be written."""
    drawn = [chart for chart in charts if chart.series]
    if not drawn:
        raise InputError(f"{place}: there is no curve to draw")
    return written_to(place, figure(drawn))


def figure(charts: Sequence[Chart]) -> str:
    """Charts in two columns, under one key to their colours."""
    columns = min(COLUMNS, len(charts))
    width = columns * WIDTH
    keys = list(_keys(charts, width))
    top = (keys[-1].y if keys else 0.0) + CAPTION
    return picture_of(
        "figure.svg.jinja",
        title=" · ".join(chart.title for chart in charts),
        width=width,
        height=top + ceil(len(charts) / columns) * (HEIGHT + CAPTION) - CAPTION + 6,
        keys=keys,
        panels=[
            Panel(chart, index % columns * WIDTH, top + index // columns * (HEIGHT + CAPTION))
            for index, chart in enumerate(charts)
        ],
    )


def _keys(charts: Sequence[Chart], width: float) -> Iterator[Key]:
    """The series' names, in as many lines as they need."""
    named = dict.fromkeys((each.colour, each.label) for chart in charts for each in chart.series if each.label)
    x, y = LEFT, LINE
    for colour, label in sorted(named):
        wide = SWATCH + LETTER * len(label)
        if x > LEFT and x + wide > width:
            x, y = LEFT, y + LINE
        yield Key(label, colour, x, y)
        x += wide
