"""The page of a run: what was logged, made ready for the template."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from upge.describe.recipe import explained, product_of, sum_of
from upge.report import measurements, responses
from upge.report.allocation import ANY, chosen, picture, shares_down
from upge.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, written
from upge.report.curves import groups
from upge.report.histograms import histograms
from upge.report.logs import Logs

POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What the page may do: its own script and styles, and nothing from anywhere."""

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


def rendered(template: str, **values: Any) -> str:
    """A template filled in, with style and script; every text from a run is escaped."""
    script = _file("page.js")
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    style, policy = _file("drawing.css") + _file("page.css"), POLICY.format(script=digest)
    return _filled(template, style=style, script=script, policy=policy, **values)


def picture_of(template: str, **values: Any) -> str:
    """An SVG's template filled in, with the drawings' style."""
    return _filled(template, style=_file("drawing.css"), **values)


def _filled(template: str, **values: Any) -> str:
    frame = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "top": TOP, "bottom": BOTTOM}
    page = _environment().get_template(template).render(frame=frame, **values)
    return page.encode("utf-8", "replace").decode("utf-8")  # half a surrogate pair is no text


def pieces(formula: str) -> list[tuple[str, str]]:
    """A formula cut into (text, the subscript after it)."""
    found = re.split(r"(?<=[^\s_])_(\w+)", formula)
    return list(zip(found[::2], [*found[1::2], ""], strict=True))


@cache
def _environment() -> Environment:
    made = Environment(
        loader=PackageLoader("upge.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"written": written, "pieces": pieces}
    made.globals |= {"shares_down": shares_down, "sum_of": sum_of, "product_of": product_of}
    return made


@cache
def _file(name: str) -> str:
    return resources.files("upge.report").joinpath("templates", name).read_text(encoding="utf-8")
