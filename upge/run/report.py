"""report.html: a run's curves and measurements on one page that needs nothing but a browser."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]

WIDTH, HEIGHT = 360, 140

PAGE = """<!doctype html>
<meta charset="utf-8"><title>{name}</title>
<style>body{{font:14px sans-serif;margin:2em;max-width:1200px}}figure{{display:inline-block;margin:.5em}}
svg{{border:1px solid #ccc}}td,th{{padding:.1em .8em;text-align:right}}td:first-child{{text-align:left}}</style>
<h1>{name}</h1>
{table}
<h2>Curves</h2>
{figures}
"""


def page(name: str, metrics: Sequence[Line]) -> str:
    """The page of a run, from the lines of its metrics.jsonl."""
    training = [line for line in metrics if line["phase"] == "train"]
    measured = [line for line in metrics if line["phase"] == "eval"]
    names = sorted({key for line in training for key in line} - {"phase", "step"})
    curves = [figure(key, [(line["step"], line[key]) for line in training if key in line]) for key in names]
    scores = sorted({key for line in measured for key in line if "avg@" in key})
    curves = [figure(key, [(line["step"], line[key]) for line in measured if key in line]) for key in scores] + curves
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


def figure(name: str, points: Sequence[tuple[float, float]]) -> str:
    """One curve as inline SVG, from its least value at the bottom to its greatest at the top."""
    values, steps = [y for _, y in points], [x for x, _ in points]
    low, high = min(values), max(values)
    wide, tall = (max(steps) - min(steps)) or 1, (high - low) or 1
    path = " ".join(
        f"{(x - min(steps)) / wide * WIDTH:.1f},{HEIGHT - 5 - (y - low) / tall * (HEIGHT - 10):.1f}" for x, y in points
    )
    caption = f"{html.escape(name)}: {values[0]:.4g} → {values[-1]:.4g} (from {low:.4g} to {high:.4g})"
    line = f'<polyline points="{path}" fill="none" stroke="#2563a8" stroke-width="1.5"/>'
    return f'<figure><svg width="{WIDTH}" height="{HEIGHT}">{line}</svg><figcaption>{caption}</figcaption></figure>'
