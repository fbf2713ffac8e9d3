"""Runs of one recipe that differ by their seeds: a group. The run folders tell, whoever has started the runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from upge.errors import InputError
from upge.grid.varying import SEED
from upge.recipe import RecipeError
from upge.recipe.homes import comparable
from upge.recipe.reading import plain, read
from upge.records.comparing import Run
from upge.records.recipe_file import flat

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
    if not all((run.folder / "recipe.yaml").is_file() for run in runs):
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
    file = run.folder / "recipe.yaml"
    try:
        settings = dict(flat(plain(comparable(read(file), file)), ""))
    except RecipeError as error:
        raise InputError(f"{file} can't be read: {' '.join(str(error).split())}") from error
    for key in NUMBERS:
        if not isinstance(settings.get(key, 0), int):
            raise InputError(f"{file}: {key} is no whole number")
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
