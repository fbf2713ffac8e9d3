"""The files that `upge compare --output` writes of recipes with several seeds; their ending says which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from upge.grid.groups import Group
    from upge.grid.scoring import Score

TITLES = {"last": "The last values", "area": "Means over the first {}"}
EVALUATIONS = "The evaluations"


def write_groups(
    output: Path,
    groups: Sequence[Group],
    metrics: Sequence[str],
    scores: Mapping[str, Sequence[Score]],
    until: Mapping[str, float],
) -> None:
    """The numbers as `.json` or `.md`, the curves of `metrics` as `.svg`, or else a page of every curve."""
    from upge.report.comparison import overlaid
    from upge.report.figure import write_figure
    from upge.report.writing import write_groups as write_page

    if output.suffix == ".svg":
        write_figure(overlaid(groups, metrics), output)
    elif not _wrote_numbers(output, groups, metrics, scores, until):
        write_page(groups, output)
    typer.echo(f"wrote {output}", err=True)


def write_evaluated(
    output: Path, groups: Sequence[Group], metrics: Sequence[str], scores: Mapping[str, Sequence[Score]]
) -> None:
    """The numbers as `.json` or `.md`, or pass@k as `.svg`. Raises InputError: another ending."""
    from upge.errors import InputError
    from upge.report.comparison import pass_at_k
    from upge.report.figure import write_figure

    if output.suffix == ".svg":
        write_figure(pass_at_k(groups), output)
    elif not _wrote_numbers(output, groups, metrics, scores, {}):
        raise InputError(f"{output}: of evaluations the numbers are written, or pass@k: a file .json, .md or .svg")
    typer.echo(f"wrote {output}", err=True)


def _wrote_numbers(
    output: Path,
    groups: Sequence[Group],
    metrics: Sequence[str],
    scores: Mapping[str, Sequence[Score]],
    until: Mapping[str, float],
) -> bool:
    from upge.grid.scoring import exported
    from upge.grid.tables import document
    from upge.report.writing import written_to

    if output.suffix == ".md":
        span = " and ".join(f"{number:,.0f} {what}" for what, number in until.items())
        titles = {name: TITLES[name].format(span) if until else EVALUATIONS for name in scores}
        written_to(output, document({titles[name]: _of(metrics, its) for name, its in scores.items()}))
    elif output.suffix == ".json":
        folders = {group.name: {str(seed): str(run.folder) for seed, run in group.runs.items()} for group in groups}
        said = {"groups": folders, "until": dict(until), **{name: exported(each) for name, each in scores.items()}}
        written_to(output, json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    return output.suffix in (".md", ".json")


def _of(metrics: Sequence[str], scores: Sequence[Score]) -> list[Score]:
    """The scores of these metrics, in their order."""
    return [each for metric in metrics for each in scores if each.metric == metric]
