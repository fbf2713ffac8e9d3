"""A run as its report shows it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.estimator.part_calls import PartError
from upge.evaluate.paired import is_evaluation
from upge.recipe.faults import RecipeError
from upge.recipe.resolve import load
from upge.recipe.schema import Recipe
from upge.report import responses
from upge.report.responses import Responses
from upge.runs import curves
from upge.runs.curves import Run


@dataclass(frozen=True)
class Logs:
    """What a run has left by now.

    Attributes:
        run: its name, folder, metrics and the reader of its folder.
        loaded: the recipe; None where it can't be loaded here, for the reason `refused`.
        responses: what was sampled.
    """

    run: Run
    loaded: Recipe | None
    refused: str
    responses: Responses

    @property
    def manifest(self) -> Mapping[str, Any]:
        """Versions, hashes, the seed."""
        return self.run.files.manifest

    @property
    def recipe(self) -> str:
        """The recipe's text."""
        return self.run.files.recipe_text

    @property
    def state(self) -> str:
        """How the run stands, in words."""
        return self.run.files.state

    @property
    def timings(self) -> Sequence[Mapping[str, Any]]:
        """The lines of timings.jsonl."""
        return self.run.files.timings

    @property
    def seed(self) -> int:
        """What the bootstrap of its scores draws with: the run's seed, or 0 where the manifest has none."""
        return self.run.files.seed if "seed" in self.manifest else 0

    @property
    def training(self) -> list[Mapping[str, Any]]:
        """The lines of training, a step each."""
        return [line for line in self.run.lines if line["phase"] == "train"]

    @property
    def measurements(self) -> list[Mapping[str, Any]]:
        """The lines of measurements."""
        return [line for line in self.run.lines if line["phase"] == "eval"]

    @property
    def terms(self) -> list[str]:
        """The names of the estimator's terms, in the recipe's order where that can be loaded."""
        if self.loaded is not None:
            return list(self.loaded.estimator.terms)
        names = {key for line in self.training for key in line if key.startswith("share/")}
        return sorted(name.removeprefix("share/") for name in names)


def opened(folders: Sequence[Path], *, allow_code: bool = False) -> list[Logs]:
    """The logs in run folders. Raises InputError where one is none, or can't be read."""
    refuse_evaluations(folders)
    return [logs_of(run, allow_code=allow_code) for run in curves.opened(folders)]


def refuse_evaluations(folders: Sequence[Path]) -> None:
    """Raise InputError where a folder is an evaluation's."""
    for folder in folders:
        if is_evaluation(folder):
            raise InputError(f"{folder}: is an evaluation; 'upge compare' sets these side by side")


def logs_of(run: Run, *, allow_code: bool = False) -> Logs:
    """The logs of an opened run."""
    recipe, refused = _recipe(run.files.recipe_file, allow_code=allow_code)
    return Logs(run, recipe, refused, responses.read(run.files))


def _recipe(path: Path, *, allow_code: bool) -> tuple[Recipe | None, str]:
    """The recipe, or why it can't be loaded: a plugin that isn't installed here, say."""
    here = f"log.folder={json.dumps(str(path.parent))}"  # a run that was moved; nothing is written there by this recipe
    try:
        return load(path, [here], allow_code=allow_code), ""
    except (RecipeError, InputError, PartError) as error:
        return None, str(error).splitlines()[0]
