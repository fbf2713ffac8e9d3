"""The page of a study: the centre's numbers with their intervals, and a curve for every recipe and number varied."""

from __future__ import annotations

import json
import re
from math import inf
from pathlib import Path

import pytest
from typer.testing import CliRunner

from upge.cli.main import app
from upge.errors import InputError
from upge.report.study import MOST, study_page, write_study
from upge.study.study import Finding, Number, Row


def number(value: float, wide: float = 0.0) -> Number:
    return Number(value, value - wide, value + wide)


def row(recipe: str, error: float, varied: str | None = None, value: float | None = None) -> Row:
    finding = Finding(number(1.0), number(0.25), number(2.0, 0.5), number(error, 0.125), number(0.5), exact=False)
    return Row(recipe, 0.1, finding, varied, value)


ROWS = [
    *(row(name, 2.0) for name in ("one", "<b>two")),
    *(row(name, error, "stale", x) for name in ("one", "<b>two") for x, error in ((0, 1.0), (4, 1.5), (16, 40.0))),
    row("one", inf, "n", 2),
    row("one", 1.0, "n", 8),
]


def test_it_has_the_centre_and_every_curve() -> None:
    page = study_page(ROWS)
    assert page.count("<figure") == 2 * 3
    assert "2.00 [1.50, 2.50]" in page
    assert "0.250" in page
    assert "By updates since π_old sampled, μ = 0.1" in page
    assert "&lt;b&gt;two" in page
    assert "<b>two" not in page


def drawn(page: str) -> list[dict[str, list[list[float]]]]:
    """The points of each chart, by recipe."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    return [{each["label"]: each["points"] for each in json.loads(text)["series"]} for text in found]


def test_what_is_beyond_the_drawing_is_left_out() -> None:
    page = study_page(ROWS)
    _, _, by_stale, _, _, by_n = drawn(page)
    assert [point[0] for point in by_stale["one"]] == [0, 4]
    assert [point[0] for point in by_n["one"]] == [8]
    assert [point[2:] for point in by_stale["one"]] == [[1.0, 0.875, 1.125], [1.5, 1.375, 1.625]]
    assert f"above {MOST:g} are not drawn" in page


def test_only_what_can_be_doubled_is_drawn_by_doublings() -> None:
    """A staleness of 0 has no logarithm."""
    page = study_page(ROWS)
    assert page.count("updates since π_old sampled</text>") == 3


def test_the_command_writes_it(tmp_path: Path) -> None:
    world = ["--success", "0.25", "--vocabulary", "2", "--length", "1", "--prompts", "1", "--n", "2", "--no-sweep"]
    answer = CliRunner().invoke(app, ["study", "rloo", *world, "--output", str(tmp_path / "study.html"), "--json"])
    assert answer.exit_code == 0, answer.output
    page = (tmp_path / "study.html").read_text()
    assert "1.667" in page
    assert "Nothing was varied." in page


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can't be written"):
        write_study(ROWS, tmp_path / "none" / "study.html")
