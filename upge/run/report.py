"""report.html: a run's curves and measurements on one page that needs nothing but a browser."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]
Curve = Sequence[tuple[float, float]]
"""(step, value) pairs."""

WIDTH, HEIGHT = 360, 140
COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be123c", "#0e7490", "#4b5563")

PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{name}</title>
<style>:root{{color-scheme:light dark}}body{{font:14px sans-serif;margin:2em;max-width:1200px}}
figure{{display:inline-block;margin:.5em}}svg{{border:1px solid #8884;max-width:100%}}
td,th{{padding:.1em .8em;text-align:right}}td:first-child{{text-align:left}}</style>
<h1>{name}</h1>
{table}
<h2>Curves</h2>
{figures}
</html>
"""


def page(name: str, metrics: Sequence[Line]) -> str:
    """The page of a run, from the lines of its metrics.jsonl."""
    training = [line for line in metrics if line["phase"] == "train"]
    measured = [line for line in metrics if line["phase"] == "eval"]
    scores = sorted({key for line in measured for key in line if "avg@" in key})
    names = sorted({key for line in training for key in line} - {"phase", "step"})
    curves = [figure(key, {"": [(line["step"], line[key]) for line in measured if key in line]}) for key in scores]
    curves += [figure(key, {"": [(line["step"], line[key]) for line in training if key in line]}) for key in names]
    return PAGE.format(name=html.escape(name), table=table(measured), figures="\n".join(curves))


def table(measured: Sequence[Line]) -> str:
    """Every measurement: a row a score, a column a step."""
    if not measured:
        return "<p>Nothing was measured.</p>"
    heads = "".join(f"<th>after {line['step']}</th>" for line in measured)
    rows = [
        f"<tr><td>{html.escape(key)}</td>" + "".join(f"<td>{line.get(key, 0):.3f}</td>" for line in measured) + "</tr>"
        for key in measured[-1]
        if "@" in key
    ]
    return f"<table><tr><th></th>{heads}</tr>{''.join(rows)}</table>"


def figure(name: str, curves: Mapping[str, Curve]) -> str:
    """Curves of one metric as inline SVG, from its least value at the bottom to its greatest at the top."""
    points = [point for curve in curves.values() for point in curve]
    steps, values = [x for x, _ in points], [y for _, y in points]
    left, low, high = min(steps), min(values), max(values)
    wide, tall = (max(steps) - left) or 1, (high - low) or 1
    lines, ends = [], []
    for index, (label, curve) in enumerate(curves.items()):
        path = " ".join(
            f"{(x - left) / wide * WIDTH:.1f},{HEIGHT - 5 - (y - low) / tall * (HEIGHT - 10):.1f}" for x, y in curve
        )
        colour = COLOURS[index % len(COLOURS)]
        lines.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        if curve:
            ends.append(f"{html.escape(label)} {curve[0][1]:.4g} → {curve[-1][1]:.4g}".strip())
    caption = f"{html.escape(name)}: {'; '.join(ends)} (from {low:.4g} to {high:.4g})"
    drawn = f'<svg width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}">{"".join(lines)}</svg>'
    return f"<figure>{drawn}<figcaption>{caption}</figcaption></figure>"
