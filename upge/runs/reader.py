"""The reader of a run folder: each file is read at most once, and validated here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.files import is_count, parse_json, regular_file
from upge.recipe.faults import RecipeError
from upge.recipe.qualified_names import comparable
from upge.recipe.yaml import Node, plain, read
from upge.runs import log_lines, status
from upge.runs.log_lines import Line, Response
from upge.runs.status import Status


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run folder, the newest first."""
    found = (path for path in (run / "checkpoints").glob("step-*") if re.fullmatch(r"step-\d+", path.name))
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")), reverse=True)


class RunReader:
    """What a run has left in its folder by now; an evaluation's folder has the same manifest, recipe and summary.

    Every property raises InputError with the place of what can't be read. A log that isn't there is empty.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    # The logs.

    @cached_property
    def metrics(self) -> tuple[Line, ...]:
        """The lines of metrics.jsonl: `phase`, `step`, and numbers."""
        return tuple(self._log("metrics.jsonl", log_lines.metrics_lines))

    @property
    def measurements(self) -> list[Line]:
        """The lines of metrics.jsonl that are measurements."""
        return [line for line in self.metrics if line["phase"] == "eval"]

    @cached_property
    def timings(self) -> tuple[Line, ...]:
        """The lines of timings.jsonl."""
        return tuple(self._log("timings.jsonl", log_lines.metrics_lines))

    @cached_property
    def responses(self) -> tuple[Response, ...]:
        """The responses in completions.jsonl, without their texts."""
        return tuple(self._log("completions.jsonl", log_lines.responses))

    def texts(self, responses: Iterable[Response]) -> Iterator[Line]:
        """The lines of these responses with their texts, which are only now read."""
        file, chosen = self.folder / "completions.jsonl", list(responses)
        if not chosen:  # perhaps there is no file
            return
        try:
            with file.open("rb") as lines:
                for response in chosen:
                    lines.seek(response.offset)
                    yield log_lines.completion_line(lines.readline(), str(file))
        except OSError as error:
            raise InputError(f"{file}: can't be read ({error.strerror or error})") from error

    @cached_property
    def credit(self) -> tuple[Line, ...]:
        """The trajectories in credit.jsonl with the weights of their tokens; what isn't finite is None."""
        return tuple(self._log("credit.jsonl", log_lines.credit_lines))

    def _log(self, name: str, lines: Any) -> Iterable[Any]:
        file = self.folder / name
        return lines(file) if file.exists() else ()

    def lacks(self, positions: Mapping[str, int]) -> str | None:
        """What the logs lack of what they held when a checkpoint counted their bytes; None where they have it all."""
        for name, position in positions.items():
            path = self.folder / name
            size = path.stat().st_size if path.is_file() else 0
            if size < position:
                return f"{name} has {size} bytes of the {position} that were logged before it"
        return None

    # What the run is.

    @property
    def is_run(self) -> bool:
        """Whether a run has begun here."""
        return (self.folder / "metrics.jsonl").is_file()

    @cached_property
    def manifest(self) -> Mapping[str, Any]:
        """manifest.json: versions, hashes, the seed."""
        try:
            manifest = parse_json(regular_file(self.folder / "manifest.json").read_text(encoding="utf-8"))
            str(manifest["recipe"]["name"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{self.folder}: its manifest.json can't be read ({error})") from error
        return dict(manifest)

    @property
    def name(self) -> str:
        """The recipe's name."""
        return str(self.manifest["recipe"]["name"])

    @property
    def seed(self) -> int:
        """The run's seed."""
        seed = self.manifest.get("seed")
        if not is_count(seed):
            raise InputError(f"{self.folder}: its manifest.json can't be read ('seed' should be a number from 0)")
        return int(seed)

    @property
    def has_recipe(self) -> bool:
        """Whether there is a recipe.yaml."""
        return self.recipe_file.is_file()

    @property
    def recipe_file(self) -> Path:
        """The resolved recipe."""
        return self.folder / "recipe.yaml"

    @cached_property
    def recipe_text(self) -> str:
        """The text of recipe.yaml; empty where there is none."""
        try:
            return self.recipe_file.read_text(encoding="utf-8") if self.has_recipe else ""
        except (OSError, ValueError) as error:
            raise InputError(f"{self.recipe_file}: can't be read ({error})") from error

    @cached_property
    def recipe(self) -> Node:
        """recipe.yaml with the whole names of its parts, so that recipes compare."""
        try:
            return comparable(read(self.recipe_file), self.recipe_file)
        except RecipeError as error:
            raise InputError(f"{self.recipe_file} can't be read: {' '.join(str(error).split())}") from error

    @cached_property
    def settings(self) -> Mapping[str, Any]:
        """The settings of recipe.yaml by their dotted paths."""
        return dict(flat(plain(self.recipe), ""))

    # How the run stands.

    @cached_property
    def status(self) -> Status | None:
        """status.json; None where there is none, or none that can be read."""
        return status.read(self.folder)

    @property
    def busy(self) -> bool:
        """Whether a process is at work in the folder now."""
        return status.busy(self.folder)

    @property
    def state(self) -> str:
        """How the run stands, in words; empty where it says nothing of it."""
        if self.status is None:
            return ""
        if self.status.state == "running" and self.busy:
            return f"running, {self.status.step} steps done"
        return self.status.outcome

    @cached_property
    def summary(self) -> Mapping[str, Any]:
        """summary.json; empty where there is none, or none that can be read."""
        try:
            summary = parse_json(regular_file(self.folder / "summary.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, InputError):
            return {}
        return summary if isinstance(summary, dict) else {}

    @property
    def end(self) -> int | None:
        """The step after which the run finished, by status.json, or else by its summary; None where it hasn't."""
        if self.status is not None:
            return self.status.step if self.status.state == "finished" else None
        steps = self.summary.get("steps")
        return int(steps) if is_count(steps) else None

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints, the newest first."""
        return checkpoints(self.folder)


def flat(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The values in nested maps below `path`, by an override's dotted path (`mask.0.high`); other lists as JSON."""
    if isinstance(value, list | tuple) and value and all(isinstance(item, dict) for item in value):
        value = dict(enumerate(value))
    if isinstance(value, dict) and value:
        for key, below in value.items():
            yield from flat(below, f"{path}.{key}" if path else str(key))
    else:
        scalar = isinstance(value, bool | int | float | str)
        yield path, value if scalar else json.dumps(value, ensure_ascii=False)
