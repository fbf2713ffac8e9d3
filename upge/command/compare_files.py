"""The files that `upge compare --output` writes of recipes with several seeds; their ending says which."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from upge.grid.groups import Group
    from upge.grid.scoring import Score


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
            title: [each for metric in self.metrics for each in self.scores[name] if each.metric == metric]
            for name, title in self.titles.items()
        }

    def exported(self) -> dict[str, Any]:
        """All scores as plain data."""
        from upge.grid.scoring import exported

        folders = {each.name: {str(seed): str(run.folder) for seed, run in each.runs.items()} for each in self.groups}
        scores = {name: exported(its) for name, its in self.scores.items()}
        return {"groups": folders, "until": dict(self.until), **scores}


def write_groups(output: Path, compared: Compared) -> None:
    """The numbers as `.json` or `.md`, the curves as `.svg`, or else a page of every curve."""
    from upge.report.comparison import overlaid
    from upge.report.figure import write_figure
    from upge.report.writing import write_groups as write_page

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
    from upge.grid.tables import document
    from upge.report.writing import written_to

    if output.suffix == ".md":
        written_to(output, document(compared.tables(), compared.groups[0].name))
    elif output.suffix == ".json":
        written_to(output, json.dumps(compared.exported(), indent=2, ensure_ascii=False) + "\n")
    return output.suffix in (".md", ".json")
