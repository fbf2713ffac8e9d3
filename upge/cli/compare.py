"""`upge compare`: runs, evaluations, or groups of runs by seed, side by side."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from upge.cli.app import app
from upge.tables import fixed, folding

if TYPE_CHECKING:
    from rich.table import Table

    from upge.evaluate.paired import Evaluated
    from upge.evaluate.scores import Estimate
    from upge.runs.curves import Run
    from upge.sweep.groups import Group
    from upge.sweep.scores import Against, Score


class Axis(StrEnum):
    """The axis of a mean over a run."""

    samples = "samples"
    steps = "steps"


Runs = Annotated[list[Path], typer.Argument(metavar="FOLDER...", help="Folders of runs, or of evaluations.")]
Metric = Annotated[
    list[str] | None,
    typer.Option(
        "--metric",
        help="More metrics to print, and the only ones in a picture or in tables; may be given several times.",
    ),
]
Output = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="The file to write. For runs: every shared curve as HTML, or the table's or --metric's as .svg; with "
        "several seeds also the numbers as .json or tables as .md. For evaluations: everything as .json; with several "
        "seeds also tables as .md or pass@k as .svg.",
    ),
]
AgainstOption = Annotated[
    Axis | None,
    typer.Option("--against", help="With several seeds: means over a run's samples (the default) or over its steps."),
]


@app.command()
def compare(runs: Runs, metric: Metric = None, output: Output = None, against: AgainstOption = None) -> None:
    """Compare runs by their curves, or evaluations by paired differences and by the problems that only one solves.

    For a single run it also compares the first and the last measurement, problem by problem. Runs of a recipe with
    several seeds are compared by means with intervals, and by differences to the first recipe, seed by seed.
    """
    from upge.errors import InputError
    from upge.evaluate.paired import is_evaluation

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

    from upge.errors import InputError
    from upge.runs.curves import opened, shared_metrics
    from upge.sweep.groups import grouped

    readers = opened(runs)
    shared = shared_metrics(readers)
    unknown = [name for name in metric if name not in shared]
    if unknown:
        raise InputError(f"no two of these runs have the metric '{unknown[0]}'; there are {', '.join(shared)}")
    usual = [name for name in shared if name == "reward" or "avg@" in name]
    metrics = list(dict.fromkeys([*usual, *metric]))
    if groups := grouped(readers):
        compare_groups(groups, metrics, metric, against or "samples", output)
        return
    if against is not None:
        raise InputError("--against is for recipes with several seeds each")
    Console(highlight=False, markup=False).print(curves(metrics, readers))
    if output is not None:
        _write(output, readers, metric or metrics)
    if len(readers) == 1:
        _compare_ends(readers[0])


def _write(output: Path, runs: Sequence[Run], metrics: Sequence[str]) -> None:
    """The picture of the curves of `metrics`, or a page of all. Raises InputError: a file of what only seeds have."""
    from upge.errors import InputError
    from upge.report.comparison import overlaid
    from upge.report.figure import write_figure
    from upge.report.write import write_runs

    if output.suffix in (".json", ".md"):
        raise InputError(f"{output}: numbers and tables are of recipes with several seeds each; write a page or .svg")
    if output.suffix == ".svg":
        write_figure(overlaid(runs, metrics), output)
    else:
        write_runs(runs, output)
    typer.echo(f"wrote {output}", err=True)


def _compare_ends(run: Run) -> None:
    from rich.console import Console

    from upge.evaluate.paired import measured

    if ends := measured(run.files):
        Console(highlight=False, markup=False).print(*_tables(*ends))


def _compare_evaluations(folders: list[Path], metric: Sequence[str], output: Path | None) -> None:
    import json

    from rich.console import Console

    from upge.errors import InputError
    from upge.evaluate import paired
    from upge.sweep.groups import of_seeds

    if groups := of_seeds(folders):
        compare_evaluated(groups, metric, output)
        return
    if metric or (output is not None and output.suffix in (".svg", ".md")):
        subject = "--metric is" if metric else f"{output}: pictures and tables are"
        raise InputError(f"{subject} for evaluations of recipes with several seeds each; these have one")
    first, *others = paired.opened(folders)
    for other in others:
        Console(highlight=False, markup=False).print(*_tables(first, other))
        if not paired.same_n(first, other):
            typer.echo(
                "solved: more samples solve more problems, and these evaluations have different numbers of samples",
                err=True,
            )
    if output is not None:
        numbers = paired.exported(first, others)
        output.write_text(json.dumps(numbers, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        typer.echo(f"wrote {output}", err=True)


def _tables(first: Evaluated, other: Evaluated) -> tuple[Table, Table, Table]:
    from upge.evaluate.paired import differences, solved
    from upge.files import shown

    names = [shown(evaluation.name) for evaluation in (first, other)]
    table, exclusive = folding(), folding()
    for column in ("measured on", "score", *names, "difference", "95 % interval"):
        table.add_column(column, justify="left" if column in ("measured on", "score") else "right")
    for difference in differences(first, other):
        digits, gap = (1 if difference.score == "length" else 3), difference.difference
        interval = f"{gap.low:+.{digits}f} … {gap.high:+.{digits}f}"
        means = (f"{difference.first:.{digits}f}", f"{difference.second:.{digits}f}", f"{gap.value:+.{digits}f}")
        table.add_row(shown(difference.place), shown(difference.score), *means, interval)
    for column in ("solved on", "by both", *(f"only by {name}" for name in names)):
        exclusive.add_column(column, justify="left" if column == "solved on" else "right")
    for it in solved(first, other):
        exclusive.add_row(shown(it.place), *(str(len(ids)) for ids in (it.both, it.only_first, it.only_second)))
    return table, exclusive, _bands(first, other)


def _bands(first: Evaluated, other: Evaluated) -> Table:
    """Of each evaluation, how many problems it solves never, sometimes and often."""
    from upge.evaluate.paired import bands
    from upge.files import shown

    table = folding()
    for column in ("problems of", "solved by", "never", "in less than half", "in half or more"):
        table.add_column(column, justify="left" if column in ("problems of", "solved by") else "right")
    for by in (first, other):
        for band in bands(by):
            table.add_row(shown(band.place), shown(by.name), str(band.never), str(band.sometimes), str(band.often))
    return table


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
    from upge.runs.curves import sparkline

    curves = {run.name: run.curve(metric) for run in runs}
    values = [value for curve in curves.values() for _, value in curve]
    rows: list[tuple[str, ...]] = []
    for name, curve in curves.items():
        ends = (fixed(curve[0][1]), fixed(curve[-1][1])) if curve else ("", "")
        rows.append(("" if rows else metric, name, *ends, sparkline(curve, min(values), max(values))))
    return rows


@dataclass(frozen=True)
class Compared:
    """Recipes with several seeds, and what they have come to.

    Attributes:
        metrics: what pictures and tables have. scores, titles: by the names of JSON ("last", "area").
        until: how far the areas go, by what they go ("samples", "steps").
    """

    groups: Sequence[Group]
    metrics: Sequence[str]
    scores: Mapping[str, Sequence[Score]]
    titles: Mapping[str, str]
    until: Mapping[str, float] = field(default_factory=dict)

    def tables(self) -> dict[str, list[Score]]:
        """The scores of the metrics by their titles, in the metrics' order."""
        return {
            title: [score for metric in self.metrics for score in self.scores[name] if score.metric == metric]
            for name, title in self.titles.items()
        }

    def exported(self) -> dict[str, Any]:
        """All scores as plain data."""
        from upge.sweep.scores import exported

        folders = {
            group.name: {str(seed): str(run.folder) for seed, run in group.runs.items()} for group in self.groups
        }
        scores = {name: exported(its) for name, its in self.scores.items()}
        return {"groups": folders, "until": dict(self.until), **scores}


def write_groups(output: Path, compared: Compared) -> None:
    """The numbers as `.json` or `.md`, the curves as `.svg`, or else a page of every curve."""
    from upge.report.comparison import overlaid
    from upge.report.figure import write_figure
    from upge.report.write import write_groups as write_page

    if output.suffix == ".svg":
        write_figure(overlaid(compared.groups, compared.metrics), output)
    elif not _wrote_numbers(output, compared):
        write_page(compared.groups, output)
    typer.echo(f"wrote {output}", err=True)


def write_evaluated(output: Path, compared: Compared) -> None:
    """The numbers as `.json` or `.md`, or pass@k as `.svg`. Raises InputError: another ending."""
    from upge.errors import InputError
    from upge.report.comparison import pass_at_k
    from upge.report.figure import write_figure

    if output.suffix == ".svg":
        write_figure(pass_at_k(compared.groups), output)
    elif not _wrote_numbers(output, compared):
        raise InputError(f"{output}: of evaluations the numbers are written, or pass@k: a file .json, .md or .svg")
    typer.echo(f"wrote {output}", err=True)


def _wrote_numbers(output: Path, compared: Compared) -> bool:
    from upge.report.html import written_to
    from upge.sweep.markdown import document

    if output.suffix == ".md":
        written_to(output, document(compared.tables(), compared.groups[0].name))
    elif output.suffix == ".json":
        written_to(output, json.dumps(compared.exported(), indent=2, ensure_ascii=False) + "\n")
    return output.suffix in (".md", ".json")


WIDTH = 200
"""Columns for a table that no terminal shows: nothing in it is cut or wrapped."""


def compare_groups(
    all_groups: Sequence[Group],
    metrics: Sequence[str],
    named: Sequence[str],
    against: Against,
    output: Path | None,
) -> None:
    """Print mean curves, last values and areas.

    Args: metrics: of the curves. named: of --metric; if there are any, only they are in pictures and tables.

    Raises InputError: no run has come to its end.
    """
    from rich.console import Console

    from upge.sweep.scores import areas, fewest, lasts

    groups, measured = _finished(all_groups), [metric for metric in metrics if "avg@" in metric]
    until = fewest(groups, against)
    others = list(dict.fromkeys(metric for metric in named if metric not in measured))
    scores = {"last": lasts(groups, [*measured, *others]), "area": areas(groups, measured, against, until)}
    titles = {"last": "The last values", "area": f"Means over the first {until:,.0f} {against}"}
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(curves(metrics, [group.mean() for group in groups]))
    console.print(*(_table(titles[name], groups[0].name, rows) for name, rows in scores.items() if rows))
    if output is not None:
        write_groups(output, Compared(groups, named or metrics, scores, titles, {against: until}))


def compare_evaluated(groups: Sequence[Group], named: Sequence[str], output: Path | None) -> None:
    """Print the scores of evaluations, a model for each seed.

    Args: named: metrics of --metric; if there are any, only they are in tables.

    Raises InputError: there is no such one.
    """
    from rich.console import Console

    from upge.errors import InputError
    from upge.sweep.groups import metrics
    from upge.sweep.scores import lasts

    every = metrics(groups)
    if unknown := [name for name in named if name not in every]:
        raise InputError(f"these evaluations have no score '{unknown[0]}' in common; they have {', '.join(every)}")
    scores, title = {"last": lasts(groups, every)}, "The evaluations"
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_table(title, groups[0].name, scores["last"]))
    if output is not None:
        write_evaluated(output, Compared(groups, named or every, scores, {"last": title}))


def _finished(all_groups: Sequence[Group]) -> list[Group]:
    """The groups without their unfinished runs, which are reported."""
    from upge.errors import InputError
    from upge.sweep.scores import finished

    groups = []
    for group in all_groups:
        whole, early = finished(group)
        for run in early:
            typer.echo(f"{run.folder} is left out: the run has not finished", err=True)
        groups += [whole] if whole.runs else []
    if not groups:
        raise InputError("none of these runs has come to its end")
    return groups


def _table(title: str, first: str, scores: Sequence[Score]) -> Table:
    from upge.files import shown

    caption = f"difference: to {shown(first)}, over the shared seeds; 95 %: Student's t"
    table = folding(title=title, title_justify="left", caption=caption, caption_justify="left")
    for column in ("metric", "recipe", "seeds", "mean", "95 %", "shared", "difference", "95 %"):
        table.add_column(column, justify="left" if column in ("metric", "recipe") else "right")
    before = None
    for score in scores:
        metric, before = ("" if score.metric == before else score.metric), score.metric
        gap = score.difference
        differing = ("", "", "") if gap is None else (str(score.shared), f"{gap.value:+.3f}", _interval(gap, "+.3f"))
        cells = (str(len(score.values)), f"{score.mean.value:.3f}", _interval(score.mean, ".3f"))
        table.add_row(*map(shown, (metric, score.group, *cells, *differing)))
    return table


def _interval(estimate: Estimate, digits: str) -> str:
    """The ends of an interval; "" if there is only one value."""
    return f"{estimate.low:{digits}} … {estimate.high:{digits}}" if isfinite(estimate.low) else ""
