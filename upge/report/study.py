"""The page of a study: the numbers of its centre, and curves over what was varied."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from upge.report.charts import Chart, Point, Series
from upge.report.curves import Group
from upge.report.html import rendered, written_to
from upge.study.study import Number, Row

DRAWN = {
    "cosine": "of one batch's gradient to ∇J",
    "bias": "how far the mean points aside",
    "error": "error²: bias² and variance",
}
"""The numbers that have curves."""
MOST = 4.0
"""Bias and error are drawn up to here: beyond it there is more noise, or bias, than gradient."""
LABELS = {"prompts": "prompts of a batch", "n": "rollouts of a prompt", "stale": "updates since π_old sampled"} | {
    "success": "share of right answers"
}


@dataclass(frozen=True)
class Line:
    """A recipe in the centre's table: its colour, and each number with its interval."""

    mu: str
    recipe: str
    colour: int
    numbers: tuple[str, ...]


def write_study(rows: Sequence[Row], place: Path) -> Path:
    """Write the page of a study. Raises InputError: `place` can't be written."""
    return written_to(place, study_page(rows))


def study_page(rows: Sequence[Row]) -> str:
    """The page of a study's rows, as `upge.study.study.study` yields them."""
    recipes = list(dict.fromkeys(row.recipe for row in rows))
    return rendered(
        "study.html.jinja",
        title="Bias and variance",
        recipes=recipes,
        centre=list(_centre(rows, recipes)),
        sweeps=list(_sweeps(rows, recipes)),
        most=MOST,
    )


def _centre(rows: Sequence[Row], recipes: Sequence[str]) -> Iterator[Line]:
    for row in sorted((row for row in rows if row.varied is None), key=lambda row: row.mu):
        found = row.finding
        numbers = (found.scale, found.bias, found.variance, found.error, found.cosine)
        yield Line(f"{row.mu:g}", row.recipe, recipes.index(row.recipe), tuple(map(str, numbers)))


def _sweeps(rows: Sequence[Row], recipes: Sequence[str]) -> Iterator[Group]:
    for mu in sorted({row.mu for row in rows}):
        for what in dict.fromkeys(row.varied for row in rows if row.varied):
            its = [row for row in rows if row.varied == what and row.mu == mu]
            yield Group(f"By {LABELS[what]}, μ = {mu:g}", [_chart(name, what, its, recipes) for name in DRAWN])


def _chart(name: str, what: str, rows: Sequence[Row], recipes: Sequence[str]) -> Chart:
    points: dict[str, list[Point]] = {recipe: [] for recipe in recipes}
    for row in rows:
        if row.value is not None:
            points[row.recipe].append(_point(name, row.value, getattr(row.finding, name)))
    series = [Series(recipe, its, recipes.index(recipe)) for recipe, its in points.items()]
    positive = all(point.x > 0 for its in points.values() for point in its)
    return Chart(name, series, note=DRAWN[name], across=LABELS[what], share=name == "cosine", log_x=positive)


def _point(name: str, x: float, number: Number) -> Point:
    point = Point(x, number.value, number.low, number.high)
    if name == "cosine":
        return point
    return replace(point, high=min(number.high, MOST), y=number.value if number.value <= MOST else inf)
