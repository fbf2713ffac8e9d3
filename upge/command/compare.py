"""`upge compare`: runs, or evaluations, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upge.command import app

if TYPE_CHECKING:
    from rich.table import Table

    from upge.run.comparing import Run
    from upge.run.contrasting import Evaluated

Runs = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Run folders, or those of evaluations.")]
Metric = Annotated[list[str] | None, typer.Option("--metric", help="Also these metrics; may be given several times.")]
Output = Annotated[
    Path | None,
    typer.Option("--output", help="Of runs, write every shared curve as HTML; of evaluations, everything as JSON."),
]


@app.command()
def compare(runs: Runs, metric: Metric = None, output: Output = None) -> None:
    """Compare runs by their curves, or evaluations by paired differences to the first and by what only one solved.

    Of a single run also its first and its last measurement are compared, problem by problem.
    """
    from upge.errors import InputError
    from upge.run.contrasting import is_evaluation

    evaluations = [folder for folder in runs if is_evaluation(folder)]
    if not evaluations:
        _compare_runs(runs, metric or [], output)
    elif len(evaluations) < len(runs):
        other = next(folder for folder in runs if folder not in evaluations)
        raise InputError(f"{other}: no evaluation folder, as {evaluations[0]} is one; compare like with like")
    elif metric or len(runs) < 2:
        raise InputError("--metric is for runs" if metric else "an evaluation is compared with another one")
    else:
        _compare_evaluations(runs, output)


def _compare_runs(runs: list[Path], metric: list[str], output: Path | None) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from upge.errors import InputError
    from upge.run import comparing

    found = comparing.opened(runs)
    shared = comparing.shared_metrics(found)
    unknown = [name for name in metric if name not in shared]
    if unknown:
        raise InputError(f"no two of these runs have the metric '{unknown[0]}'; there are {', '.join(shared)}")
    wanted = [name for name in shared if name == "reward" or "avg@" in name] + metric
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
    if len(runs) == 1:
        _compare_ends(runs[0])


def _compare_ends(run: Path) -> None:
    from rich.console import Console

    from upge.run.contrasting import measured

    if ends := measured(run):
        Console(highlight=False, markup=False).print(*_tables(*ends))


def _compare_evaluations(folders: list[Path], output: Path | None) -> None:
    import json

    from rich.console import Console

    from upge.run import contrasting

    first, *others = contrasting.opened(folders)
    for other in others:
        Console(highlight=False, markup=False).print(*_tables(first, other))
        if not contrasting.same_n(first, other):
            typer.echo("solved: with more samples more is solved, and these have different numbers of them", err=True)
    if output is not None:
        said = contrasting.exported(first, others)
        output.write_text(json.dumps(said, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        typer.echo(f"wrote {output}", err=True)


def _tables(first: Evaluated, other: Evaluated) -> tuple[Table, Table, Table]:
    from rich import box
    from rich.table import Table

    from upge.run.contrasting import differences, solved

    table, exclusive = Table(box=box.SIMPLE_HEAD), Table(box=box.SIMPLE_HEAD)
    for column in ("measured on", "score", first.name, other.name, "difference", "95 % interval"):
        table.add_column(column, justify="left" if column in ("measured on", "score") else "right")
    for each in differences(first, other):
        digits, gap = (1 if each.score == "length" else 3), each.difference
        interval = f"{gap.low:+.{digits}f} … {gap.high:+.{digits}f}"
        means = (f"{each.first:.{digits}f}", f"{each.second:.{digits}f}", f"{gap.value:+.{digits}f}")
        table.add_row(each.place, each.score, *means, interval)
    for column in ("solved on", "by both", f"only by {first.name}", f"only by {other.name}"):
        exclusive.add_column(column, justify="left" if column == "solved on" else "right")
    for it in solved(first, other):
        exclusive.add_row(it.place, *(str(len(ids)) for ids in (it.both, it.only_first, it.only_second)))
    return table, exclusive, _bands(first, other)


def _bands(first: Evaluated, other: Evaluated) -> Table:
    """Of each evaluation, how many problems it solves never, sometimes and often."""
    from rich import box
    from rich.table import Table

    from upge.run.contrasting import bands

    table = Table(box=box.SIMPLE_HEAD)
    for column in ("problems of", "solved by", "never", "in less than half", "in half or more"):
        table.add_column(column, justify="left" if column in ("problems of", "solved by") else "right")
    for by in (first, other):
        for each in bands(by):
            table.add_row(each.place, by.name, str(each.never), str(each.sometimes), str(each.often))
    return table


def _rows(metric: str, runs: list[Run]) -> list[tuple[str, ...]]:
    from upge.run.comparing import sparkline

    curves = {run.name: run.curve(metric) for run in runs}
    values = [value for curve in curves.values() for _, value in curve]
    rows: list[tuple[str, ...]] = []
    for name, curve in curves.items():
        ends = (f"{curve[0][1]:.3f}", f"{curve[-1][1]:.3f}") if curve else ("", "")
        rows.append(("" if rows else metric, name, *ends, sparkline(curve, min(values), max(values))))
    return rows
