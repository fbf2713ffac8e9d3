"""`upge compare` of runs with several seeds: means with intervals, and differences seed by seed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from upge.command.compare_files import Compared, write_evaluated, write_groups
from upge.tables import folding

if TYPE_CHECKING:
    from rich.table import Table

    from upge.grid.groups import Group
    from upge.grid.scoring import Against, Score
    from upge.records.estimates import Estimate

WIDTH = 200
"""Columns for a table that no terminal shows: nothing in it is cut or wrapped."""


def compare_groups(
    given: Sequence[Group],
    metrics: Sequence[str],
    asked: Sequence[str],
    against: Against,
    output: Path | None,
) -> None:
    """Print mean curves, last values and areas.

    Args: metrics: of the curves. asked: those given by name; if there are any, only they are in pictures and tables.

    Raises InputError: no run has come to its end.
    """
    from rich.console import Console

    from upge.command.compare_curves import curves
    from upge.grid.scoring import areas, fewest, lasts

    groups, measured = _finished(given), [metric for metric in metrics if "avg@" in metric]
    until = fewest(groups, against)
    others = list(dict.fromkeys(metric for metric in asked if metric not in measured))
    scores = {"last": lasts(groups, [*measured, *others]), "area": areas(groups, measured, against, until)}
    titles = {"last": "The last values", "area": f"Means over the first {until:,.0f} {against}"}
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(curves(metrics, [group.mean() for group in groups]))
    console.print(*(_table(titles[name], groups[0].name, found) for name, found in scores.items() if found))
    if output is not None:
        write_groups(output, Compared(groups, asked or metrics, scores, titles, {against: until}))


def compare_evaluated(groups: Sequence[Group], asked: Sequence[str], output: Path | None) -> None:
    """Print the scores of evaluations, a model for each seed.

    Args: asked: those given by name; if there are any, only they are in tables.

    Raises InputError: there is no such one.
    """
    from rich.console import Console

    from upge.errors import InputError
    from upge.grid.evaluations import metrics
    from upge.grid.scoring import lasts

    every = metrics(groups)
    if unknown := [name for name in asked if name not in every]:
        raise InputError(f"these evaluations have no score '{unknown[0]}' in common; they have {', '.join(every)}")
    scores, title = {"last": lasts(groups, every)}, "The evaluations"
    console = Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_table(title, groups[0].name, scores["last"]))
    if output is not None:
        write_evaluated(output, Compared(groups, asked or every, scores, {"last": title}))


def _finished(given: Sequence[Group]) -> list[Group]:
    """The groups without runs that have not come to their end, which are told."""
    from upge.errors import InputError
    from upge.grid.scoring import finished

    groups = []
    for group in given:
        whole, early = finished(group)
        for run in early:
            typer.echo(f"{run.folder} is left out: the run has not come to its end", err=True)
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
    for each in scores:
        metric, before = ("" if each.metric == before else each.metric), each.metric
        gap = each.difference
        differing = ("", "", "") if gap is None else (str(each.shared), f"{gap.value:+.3f}", _interval(gap, "+.3f"))
        own = (str(len(each.values)), f"{each.mean.value:.3f}", _interval(each.mean, ".3f"))
        table.add_row(*map(shown, (metric, each.group, *own, *differing)))
    return table


def _interval(estimate: Estimate, digits: str) -> str:
    """The ends; nothing where one value says nothing of them."""
    return f"{estimate.low:{digits}} … {estimate.high:{digits}}" if isfinite(estimate.low) else ""
