"""Evaluations of runs that differ by their seeds: each as a run with one measurement, so that seeds are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from upge.grid.groups import Group, grouped
from upge.records.comparing import Run
from upge.records.contrasting import Evaluated, opened
from upge.records.scores import columns, places

ALONE = "alone"
"""The share of a place's problems that a recipe solves in its n samples and no other recipe does with this seed."""


def of_seeds(folders: Sequence[Path]) -> list[Group] | None:
    """The recipes that were evaluated; None where no recipe has two seeds, or two evaluations have recipe and seed.

    Raises InputError: an evaluation can't be read.
    """
    found = opened(folders)
    groups = grouped([_run(each, folder) for each, folder in zip(found, folders, strict=True)], models=True)
    if groups is None:
        return None
    by_folder = dict(zip(folders, found, strict=True))
    return [_with_alone(group, groups, by_folder) for group in groups]


def metrics(groups: Sequence[Group]) -> list[str]:
    """The scores that every evaluation has, in their order."""
    first, *others = (run.lines[0] for group in groups for run in group.runs.values())
    return [name for name in first if name not in ("phase", "step") and all(name in line for line in others)]


def _run(evaluated: Evaluated, folder: Path) -> Run:
    scores = {
        f"{place}/{score}": fmean(values)
        for place, its in places(evaluated.records).items()
        for score, values in columns(its, evaluated.pass_at).items()
    }
    return Run(evaluated.name, folder, ({"phase": "eval", "step": 0, **scores},))


def _with_alone(group: Group, groups: Sequence[Group], found: dict[Path, Evaluated]) -> Group:
    """The group with what it alone solves, for the seeds that all groups have."""
    runs = {}
    for seed, run in group.runs.items():
        others = [other.runs.get(seed) for other in groups if other is not group]
        rivals = [found[other.folder] for other in others if other is not None]
        whole = bool(others) and len(rivals) == len(others)
        line = {**run.lines[0], **(_alone(found[run.folder], rivals) if whole else {})}
        runs[seed] = Run(run.name, run.folder, (line,))
    return Group(group.name, runs, group.settings)


def _alone(evaluated: Evaluated, rivals: Sequence[Evaluated]) -> dict[str, float]:
    theirs = {(each.split, each.id) for rival in rivals for each in rival.records if each.right}
    return {
        f"{place}/{ALONE}": fmean(float(each.right > 0 and (each.split, each.id) not in theirs) for each in its)
        for place, its in places(evaluated.records).items()
    }
