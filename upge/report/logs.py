"""A run as its report shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.evaluate.paired import is_evaluation
from upge.recipe.schema import Recipe
from upge.report.responses import Responses
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


def refuse_evaluations(folders: Sequence[Path]) -> None:
    """Raise InputError where a folder is an evaluation's."""
    for folder in folders:
        if is_evaluation(folder):
            raise InputError(f"{folder}: is an evaluation; 'upge compare' sets these side by side")
