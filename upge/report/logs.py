"""A run folder, read for a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.estimator.part_calls import PartError
from upge.evaluate.paired import is_evaluation
from upge.files import parse_json
from upge.recipe.faults import RecipeError
from upge.recipe.resolve import load
from upge.recipe.schema import Recipe
from upge.report import responses
from upge.report.responses import Responses
from upge.runs import reader, status
from upge.runs.reader import Run, metrics_of


@dataclass(frozen=True)
class Logs:
    """What a run has left by now.

    Attributes:
        run: its name, folder and metrics. manifest: versions, hashes, the seed. recipe: as text.
        loaded: the recipe; None where it can't be loaded here, for the reason `refused`.
        state: how it stands, in words. timings: lines of timings.jsonl. responses: what was sampled.
    """

    run: Run
    manifest: Mapping[str, Any]
    recipe: str
    loaded: Recipe | None
    refused: str
    state: str
    timings: Sequence[Mapping[str, Any]]
    responses: Responses

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
    for folder in folders:
        if is_evaluation(folder):
            raise InputError(f"{folder}: is an evaluation; 'upge compare' sets these side by side")
    return [_opened(run, allow_code=allow_code) for run in reader.opened(folders)]


def _opened(run: Run, *, allow_code: bool) -> Logs:
    loaded, refused = _recipe(run.folder / "recipe.yaml", allow_code=allow_code)
    manifest = parse_json(_text(run.folder / "manifest.json"))  # an object: its recipe's name has been read
    timings = metrics_of(run.folder / "timings.jsonl") if (run.folder / "timings.jsonl").exists() else []
    found = status.read(run.folder)
    if found is None:
        state = ""
    elif found.state == "running" and status.busy(run.folder):
        state = f"running, {found.step} steps done"
    else:
        state = found.told
    text = _text(run.folder / "recipe.yaml")
    return Logs(run, manifest, text, loaded, refused, state, timings, responses.read(run.folder))


def _recipe(path: Path, *, allow_code: bool) -> tuple[Recipe | None, str]:
    """The recipe, or why it can't be loaded: a plugin that isn't installed here, say."""
    here = f"log.folder={json.dumps(str(path.parent))}"  # a run that was moved; nothing is written there by this recipe
    try:
        return load(path, [here], allow_code=allow_code), ""
    except (RecipeError, InputError, PartError) as error:
        return None, str(error).splitlines()[0]


def _text(path: Path) -> str:
    """A file's text; "" where it isn't there. Raises InputError where it can't be read."""
    try:
        return path.read_text(encoding="utf-8") if path.is_file() else ""
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: can't be read ({error})") from error
