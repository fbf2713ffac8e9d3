"""Reports' templates filled in, as pages or pictures that hold all they need, written whole or not at all."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from upge.describe.recipe import product_of, sum_of
from upge.errors import InputError
from upge.report.allocation import shares_down
from upge.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, written
from upge.runs import atomic_files

POLICY = (
    "default-src 'none'; script-src 'sha256-{script}'; style-src 'unsafe-inline'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)
"""What the page may do: its own script and styles, and nothing from anywhere."""


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


def written_to(place: Path, page: str) -> Path:
    """Write a page whole or not at all. Raises InputError: `place` can't be written."""
    try:
        atomic_files.write(place, page)
    except OSError as error:
        raise InputError(f"{place}: can't be written ({error.strerror or error})") from error
    return place
