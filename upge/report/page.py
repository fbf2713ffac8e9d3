"""The page of a run: what was logged, made ready for the template."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from upge.describe.recipe import explained
from upge.report import measurements, responses
from upge.report.allocation import ANY, chosen, picture
from upge.report.charts import written
from upge.report.curves import groups
from upge.report.histograms import histograms
from upge.report.html import rendered
from upge.report.logs import Logs

_KEY = re.compile(r"^(\s*(?:- )*)([^\s:#'\"][^:]*)(:)(?= |$)(.*)$")
"""A line of YAML that begins with a key."""


@dataclass(frozen=True)
class Tile:
    """A number to see first."""

    name: str
    value: str
    note: str = ""


def run_page(logs: Logs) -> str:
    """The page of one run."""
    prompts = sorted(logs.responses.prompts, key=lambda prompt: prompt.step)
    labels = chosen(logs.loaded, prompts)
    known, intervals = ANY not in labels, measurements.estimates(logs)
    terms = {(prompt.step, prompt.problem): label for prompt, label in zip(prompts, labels, strict=True)}
    curves, still = groups(logs.training, logs.timings, logs.terms)
    return rendered(
        "run.html.jinja",
        title=logs.run.name,
        logs=logs,
        tiles=list(_tiles(logs)),
        measured=measurements.table(logs.measurements, intervals),
        measurements=[*measurements.charts(logs, intervals)],
        pass_at_k=measurements.pass_at_k(logs),
        curves=curves,
        still=still,
        picture=picture(prompts, labels, logs.terms),
        known=known,
        histograms=histograms(prompts),
        shown=logs.responses.shown(terms if known else None),
        credits=responses.token_weights(logs.run.files),
        explanation=None if logs.loaded is None else explained(logs.loaded),
        recipe=list(_coloured(logs.recipe)),
        manifest=logs.manifest,
    )


def _tiles(logs: Logs) -> Iterator[Tile]:
    training, lines = logs.training, logs.measurements
    yield Tile("steps", str(len(training)), logs.state)
    if training and "reward" in training[-1]:
        yield Tile("reward", written(training[-1]["reward"]), f"from {written(training[0].get('reward', 0.0))}")
    for row in measurements.table(lines, {}):
        if "/" not in row.place and row.score.startswith(("avg@", "pass@")):
            yield Tile(f"{row.place} {row.score}", written(round(row.last, 3)), f"from {written(round(row.first, 3))}")
    seconds = sum(v for line in logs.timings for key, v in line.items() if key not in ("phase", "step"))
    if seconds:
        yield Tile("time", _spoken(seconds), "by the clock")


def _spoken(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _coloured(recipe: str) -> Iterator[tuple[str, str, str]]:
    """The recipe line by line: what stands before a key, the key, what comes after it."""
    for line in recipe.splitlines():
        found = _KEY.match(line)
        yield (found[1], found[2], found[3] + found[4]) if found else ("", "", line)
