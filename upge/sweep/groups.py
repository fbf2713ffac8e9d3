"""Runs of one recipe that differ by their seeds: a group. The run folders tell, whoever has started the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from upge.errors import InputError
from upge.evaluate.paired import Evaluated, opened
from upge.evaluate.scores import columns, places
from upge.runs.curves import Run

SEED = "train.seed"
BESIDES = (SEED, "train.save_every", "train.keep", "train.threads", "log", "about")
"""What may differ within a group: it says nothing of the method."""
NUMBERS = (SEED, "train.steps", "rollout.n")
"""What a comparison reckons with."""
ABSENT = "not set"
MODEL = "model.path"
"""Where an evaluation's recipe names what was measured: in place of what that was trained from."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Group:
    """Runs of one recipe. Attributes: name: the recipe's, with the settings by which it differs from others called so.

    runs: by seed. settings: by dotted path, without the seed.
    """

    name: str
    runs: Mapping[int, Run]
    settings: Settings

    def mean(self) -> Run:
        """The group as one run: at each step the mean of every number that all seeds have there."""
        lines: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
        for run in self.runs.values():
            for line in run.lines:
                lines.setdefault((line["phase"], line["step"]), []).append(line)
        whole = {at: found for at, found in lines.items() if len(found) == len(self.runs)}
        folder = next(iter(self.runs.values())).folder
        return Run(self.name, folder, tuple(_mean(phase, step, found) for (phase, step), found in whole.items()))


def grouped(runs: Sequence[Run], *, models: bool = False) -> list[Group] | None:
    """The groups, in the order of their first runs; None where no recipe has two seeds, or a folder has no recipe.

    Args: models: these are evaluations, each of a run's own model; several of one recipe and seed make no groups.

    Raises InputError: a recipe.yaml can't be read; two runs of a group have one seed.
    """
    if not all(run.files.has_recipe for run in runs):
        return None
    found: dict[tuple[tuple[str, Any], ...], dict[int, Run]] = {}
    again: list[tuple[Run, Run]] = []
    for run in runs:
        settings = _settings(run)
        seed = settings.get(SEED, 0)
        settings = {key: value for key, value in settings.items() if not (models and key == MODEL)}
        kept = tuple(sorted((key, str(value)) for key, value in settings.items() if not _is_besides(key)))
        first = found.setdefault(kept, {}).setdefault(seed, run)
        again += [(first, run)] if first is not run else []
    if all(len(members) == 1 for members in found.values()) or (models and again):
        return None
    if again:
        one, other = again[0]
        raise InputError(f"{one.folder} and {other.folder} have the same recipe and seed: seeds are counted once")
    return _named([Group("", members, dict(kept)) for kept, members in found.items()])


def _settings(run: Run) -> dict[str, Any]:
    settings = dict(run.files.settings)
    for key in NUMBERS:
        if not isinstance(settings.get(key, 0), int):
            raise InputError(f"{run.files.recipe_file}: {key} is no whole number")
    return settings


def _is_besides(key: str) -> bool:
    return any(f"{key}.".startswith(f"{name}.") for name in BESIDES)


def _named(groups: Sequence[Group]) -> list[Group]:
    """The groups with names that tell them apart."""
    return [Group(_name(group, groups), group.runs, group.settings) for group in groups]


def _name(group: Group, groups: Sequence[Group]) -> str:
    name = str(group.settings.get("name", "run"))
    alike = [other.settings for other in groups if other.settings.get("name") == group.settings.get("name")]
    keys = sorted({key for settings in alike for key in settings})
    differing = [key for key in keys if len({settings.get(key, ABSENT) for settings in alike}) > 1]
    return " ".join([name, *(f"{_short(key, differing)}={group.settings.get(key, ABSENT)}" for key in differing)])


def _short(key: str, among: Sequence[str]) -> str:
    """The end of a dotted path that no other of these has: `optimizer.lr` → `lr`."""
    names = key.split(".")
    ends = (".".join(names[-count:]) for count in range(1, len(names)))
    return next((end for end in ends if sum(f".{other}".endswith(f".{end}") for other in among) == 1), key)


def _mean(phase: str, step: int, lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    shared = [key for key in lines[0] if key not in ("phase", "step") and all(key in line for line in lines)]
    numbers = {key: [line[key] for line in lines] for key in shared}
    means = {key: fmean(values) for key, values in numbers.items() if all(isinstance(v, int | float) for v in values)}
    return {"phase": phase, "step": step, **means}


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
