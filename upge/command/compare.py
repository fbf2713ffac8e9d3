"""`upge compare`: runs, or evaluations, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from upge.command.app import app
from upge.tables import folding

if TYPE_CHECKING:
    from rich.table import Table

    from upge.grid.scoring import Against
    from upge.records.comparing import Run
    from upge.records.contrasting import Evaluated


class Axis(StrEnum):
    """What a mean over a run goes by."""

    samples = "samples"
    steps = "steps"


Runs = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Run folders, or those of evaluations.")]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric", help="Also these metrics, and only these in a picture or in tables; may be given several times."
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="Of runs, write every shared curve as HTML, or those of the table, or of --metric, as .svg; of several "
        "seeds, the numbers as .json or tables as .md; of evaluations, everything as .json, and over several seeds "
        "tables as .md or pass@k as .svg.",
    ),
]
AgainstOption = Annotated[
    Axis | None,
    typer.Option("--against", help="With several seeds: means over the samples (the default) or the steps of a run."),
]


@app.command()
def compare(runs: Runs, metric: Metric = None, output: Output = None, against: AgainstOption = None) -> None:
    """Compare runs by their curves, or evaluations by paired differences to the first and by what only one solved.

    Of a single run also its first and its last measurement are compared, problem by problem; runs of a recipe with
    several seeds by means with intervals, and by differences to the first recipe, seed by seed.
    """
    from upge.errors import InputError
    from upge.records.contrasting import is_evaluation

    evaluations = [folder for folder in runs if is_evaluation(folder)]
    if not evaluations:
        compare_runs(runs, metric or [], output, against.value if against else None)
    elif len(evaluations) < len(runs):
        other = next(folder for folder in runs if folder not in evaluations)
        raise InputError(f"{other}: no evaluation folder, as {evaluations[0]} is one; compare like with like")
    elif against or len(runs) < 2:
        raise InputError("--against is for runs" if against else "an evaluation is compared with another one")
    else:
        _compare_evaluations(runs, metric or [], output)


def compare_runs(
    runs: Sequence[Path], metric: Sequence[str] = (), output: Path | None = None, against: Against | None = None
) -> None:
    """Compare runs. Raises InputError: one is none; two of these have no such metric."""
    from rich.console import Console

    from upge.command.compare_curves import curves
    from upge.command.compare_seeds import compare_groups
    from upge.errors import InputError
    from upge.grid.groups import grouped
    from upge.records import comparing

    found = comparing.opened(runs)
    shared = comparing.shared_metrics(found)
    unknown = [name for name in metric if name not in shared]
    if unknown:
        raise InputError(f"no two of these runs have the metric '{unknown[0]}'; there are {', '.join(shared)}")
    usual = [name for name in shared if name == "reward" or "avg@" in name]
    wanted = list(dict.fromkeys([*usual, *metric]))
    if groups := grouped(found):
        compare_groups(groups, wanted, metric, against or "samples", output)
        return
    if against is not None:
        raise InputError("--against is for recipes with several seeds each")
    Console(highlight=False, markup=False).print(curves(wanted, found))
    if output is not None:
        _write(output, runs, found, metric or wanted)
    if len(runs) == 1:
        _compare_ends(runs[0])


def _write(output: Path, folders: Sequence[Path], runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """The picture of the curves of `metrics`, or a page of all. Raises InputError: a file of what only seeds have."""
    from upge.errors import InputError
    from upge.report.comparison import overlaid
    from upge.report.figure import write_figure
    from upge.report.writing import write

    if output.suffix in (".json", ".md"):
        raise InputError(f"{output}: numbers and tables are of recipes with several seeds each; write a page or .svg")
    if output.suffix == ".svg":
        write_figure(overlaid(runs, metrics), output)
    else:
        write(folders, output)
    typer.echo(f"wrote {output}", err=True)


def _compare_ends(run: Path) -> None:
    from rich.console import Console

    from upge.records.contrasting import measured

    if ends := measured(run):
        Console(highlight=False, markup=False).print(*_tables(*ends))


def _compare_evaluations(folders: list[Path], metric: Sequence[str], output: Path | None) -> None:
    import json

    from rich.console import Console

    from upge.command.compare_seeds import compare_evaluated
    from upge.errors import InputError
    from upge.grid.evaluations import of_seeds
    from upge.records import contrasting

    if groups := of_seeds(folders):
        compare_evaluated(groups, metric, output)
        return
    if metric or (output is not None and output.suffix in (".svg", ".md")):
        told = "--metric is" if metric else f"{output}: pictures and tables are"
        raise InputError(f"{told} for evaluations of recipes with several seeds each; these have one")
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
    from upge.files import shown
    from upge.records.contrasting import differences, solved

    names = [shown(each.name) for each in (first, other)]
    table, exclusive = folding(), folding()
    for column in ("measured on", "score", *names, "difference", "95 % interval"):
        table.add_column(column, justify="left" if column in ("measured on", "score") else "right")
    for each in differences(first, other):
        digits, gap = (1 if each.score == "length" else 3), each.difference
        interval = f"{gap.low:+.{digits}f} … {gap.high:+.{digits}f}"
        means = (f"{each.first:.{digits}f}", f"{each.second:.{digits}f}", f"{gap.value:+.{digits}f}")
        table.add_row(shown(each.place), shown(each.score), *means, interval)
    for column in ("solved on", "by both", *(f"only by {name}" for name in names)):
        exclusive.add_column(column, justify="left" if column == "solved on" else "right")
    for it in solved(first, other):
        exclusive.add_row(shown(it.place), *(str(len(ids)) for ids in (it.both, it.only_first, it.only_second)))
    return table, exclusive, _bands(first, other)


def _bands(first: Evaluated, other: Evaluated) -> Table:
    """Of each evaluation, how many problems it solves never, sometimes and often."""
    from upge.files import shown
    from upge.records.contrasting import bands

    table = folding()
    for column in ("problems of", "solved by", "never", "in less than half", "in half or more"):
        table.add_column(column, justify="left" if column in ("problems of", "solved by") else "right")
    for by in (first, other):
        for each in bands(by):
            table.add_row(shown(each.place), shown(by.name), str(each.never), str(each.sometimes), str(each.often))
    return table
