"""Metrics to experiment trackers, by accelerate: under their names in metrics.jsonl, at the step they have there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import get_available_trackers

from upge.errors import InputError
from upge.recipe.schema import Recipe
from upge.runs.reader import flat

_PACKAGES = {"comet_ml": "comet-ml", "tensorboard": "upge[tensorboard]"}
_KNOWN = ("aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb")
"""Those that accelerate brings; it finds out by itself which of them are installed."""


def require(trackers: tuple[str, ...]) -> None:
    """Raise InputError, with the command that helps, where a tracker's package is missing."""
    available = {str(tracker) for tracker in get_available_trackers()}
    for name in trackers:
        if name in _KNOWN and name not in available:
            raise InputError(f"log.trackers: {name} is not installed: pip install '{_PACKAGES.get(name, name)}'")


Track = Callable[[Mapping[str, Any]], None]
"""Sends a line of metrics.jsonl to trackers."""


@contextmanager
def tracking(recipe: Recipe, accelerator: Accelerator, folder: Path) -> Iterator[Track]:
    """While open, sends lines of metrics.jsonl to the recipe's trackers; what they keep in files goes into `folder`.

    Raises InputError where a tracker can't be started: no login, no connection.
    """
    if not recipe.log.trackers:
        yield lambda line: None
        return
    place = folder / "trackers"
    place.mkdir(parents=True, exist_ok=True)
    accelerator.project_configuration.logging_dir = str(place)
    try:
        # wandb would write into the working folder.
        accelerator.init_trackers(recipe.name, config=settings(recipe), init_kwargs={"wandb": {"dir": str(place)}})
    except Exception as error:  # each tracker has errors of its own
        reason = " ".join(str(error).split())[:300]
        names = ", ".join(recipe.log.trackers)
        raise InputError(f"log.trackers: {names} can't be started: {type(error).__name__}: {reason}") from error
    try:
        yield lambda line: accelerator.log(numbers(line), step=line["step"])
    finally:
        _close(recipe, accelerator)


def _close(recipe: Recipe, accelerator: Accelerator) -> None:
    """Close the trackers; one that can't be closed is told, and changes nothing of how the run ended."""
    try:
        accelerator.end_training()
    except Exception as error:  # each tracker has errors of its own
        names, reason = ", ".join(recipe.log.trackers), " ".join(str(error).split())[:300]
        print(f"log.trackers: {names} can't be closed: {type(error).__name__}: {reason}", file=sys.stderr)


def numbers(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a line of metrics.jsonl holds beside its coordinates."""
    return {name: value for name, value in line.items() if name not in ("phase", "step")}


def settings(recipe: Recipe) -> dict[str, Any]:
    """The recipe by dotted paths, its values such as every tracker takes: numbers, truth values and text."""
    return dict(flat(recipe.model_dump(mode="json"), ""))
