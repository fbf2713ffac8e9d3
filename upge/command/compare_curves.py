"""The curves of several runs, as `upge compare` prints them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from upge.tables import fixed, folding

if TYPE_CHECKING:
    from rich.table import Table

    from upge.records.comparing import Run


def curves(metrics: Sequence[str], runs: Sequence[Run]) -> Table:
    """A line for each metric and run: first and last value, and the curve between them."""
    from upge.files import shown

    table = folding()
    for column in ("", "run", "first", "last", "curve"):
        table.add_column(column, justify="right" if column in ("first", "last") else "left")
    for metric in metrics:
        for row in _rows(metric, runs):
            table.add_row(*map(shown, row))
    return table


def _rows(metric: str, runs: Sequence[Run]) -> list[tuple[str, ...]]:
    from upge.records.comparing import sparkline

    curves = {run.name: run.curve(metric) for run in runs}
    values = [value for curve in curves.values() for _, value in curve]
    rows: list[tuple[str, ...]] = []
    for name, curve in curves.items():
        ends = (fixed(curve[0][1]), fixed(curve[-1][1])) if curve else ("", "")
        rows.append(("" if rows else metric, name, *ends, sparkline(curve, min(values), max(values))))
    return rows
