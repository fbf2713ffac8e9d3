"""`upge compare`: runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upge.command import app

if TYPE_CHECKING:
    from upge.run.comparing import Run

Runs = Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")]
Metric = Annotated[list[str] | None, typer.Option("--metric", help="Also these metrics; may be given several times.")]
Output = Annotated[Path | None, typer.Option("--output", help="Write every shared curve to this HTML file.")]


@app.command()
def compare(runs: Runs, metric: Metric = None, output: Output = None) -> None:
    """Compare runs: reward and measurements, first and last value and the curve between them."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from upge.errors import InputError
    from upge.run import comparing

    found = comparing.opened(runs)
    shared = comparing.shared_metrics(found)
    unknown = [name for name in metric or () if name not in shared]
    if unknown:
        raise InputError(f"no two of these runs have the metric '{unknown[0]}'; there are {', '.join(shared)}")
    wanted = [name for name in shared if name == "reward" or "avg@" in name] + list(metric or ())
    table = Table(box=box.SIMPLE_HEAD)
    for column, justify in (("", "left"), ("run", "left"), ("first", "right"), ("last", "right"), ("curve", "left")):
        table.add_column(column, justify="right" if justify == "right" else "left")
    for name in dict.fromkeys(wanted):
        for row in _rows(name, found):
            table.add_row(*row)
    Console(highlight=False, markup=False).print(table)
    if output is not None:
        output.write_text(comparing.page(found), encoding="utf-8")
        typer.echo(f"wrote {output}", err=True)


def _rows(metric: str, runs: list[Run]) -> list[tuple[str, ...]]:
    from upge.run.comparing import sparkline

    curves = {run.name: run.curve(metric) for run in runs}
    values = [value for curve in curves.values() for _, value in curve]
    rows: list[tuple[str, ...]] = []
    for name, curve in curves.items():
        ends = (f"{curve[0][1]:.3f}", f"{curve[-1][1]:.3f}") if curve else ("", "")
        rows.append(("" if rows else metric, name, *ends, sparkline(curve, min(values), max(values))))
    return rows
