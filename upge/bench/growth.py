"""Curves of growth as SVG: on both axes a step to the right, or up, is a doubling."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Curves = Mapping[str, Sequence[tuple[float, float]]]
"""By what grows: (how many times as large, how many times as much), beginning with (1, 1)."""

DOUBLING, LEFT, TOP, PANEL = 60, 40, 40, 380
"""Pixels of a doubling, to the first panel, above it, and from one panel to the next."""
COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7e22ce")


def drawing(panels: Mapping[str, Curves]) -> str:
    """A picture with a panel for each of the quantities; dashed: what grows as its cause does."""
    everything = [value for curves in panels.values() for curve in curves.values() for pair in curve for value in pair]
    doublings = max(1, math.ceil(math.log2(max(everything))))
    width, height = PANEL * len(panels), TOP + (doublings + 1) * DOUBLING
    drawn = [_panel(title, curves, index * PANEL, doublings) for index, (title, curves) in enumerate(panels.items())]
    box = f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12"'
    paper = f'<rect width="{width}" height="{height}" fill="#fff"/>'
    return "\n".join([f'<svg xmlns="http://www.w3.org/2000/svg" {box}>', paper, *drawn, "</svg>", ""])


def _panel(title: str, curves: Curves, shift: int, doublings: int) -> str:
    bottom = TOP + doublings * DOUBLING
    marks = [_text(LEFT, TOP - 20, title)]
    for count in range(doublings + 1):
        across, up = LEFT + count * DOUBLING, bottom - count * DOUBLING
        marks += [_text(across - 8, bottom + 18, f"× {2**count}"), _text(4, up + 4, f"× {2**count}")]
        marks += [_line([(LEFT, up), (LEFT + doublings * DOUBLING, up)], "#ddd")]
    marks.append(_line([(LEFT, bottom), (LEFT + doublings * DOUBLING, TOP)], "#888", ' stroke-dasharray="4"'))
    for index, (name, curve) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        points = [(LEFT + math.log2(x) * DOUBLING, bottom - math.log2(y) * DOUBLING) for x, y in curve]
        marks += [_line(points, colour, ' stroke-width="2"'), _text(LEFT + 8, TOP + 18 * (index + 1), name, colour)]
    return f'<g transform="translate({shift} 0)">{"".join(marks)}</g>'


def _line(points: Sequence[tuple[float, float]], colour: str, more: str = "") -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f'<polyline points="{path}" fill="none" stroke="{colour}"{more}/>'


def _text(x: float, y: float, words: str, colour: str = "#222") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}">{html.escape(words)}</text>'
