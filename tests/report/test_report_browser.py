"""Reports in a browser: a run's page and a comparison's in headless Chromium, at 390 and 1440 pixels, light and dark.

The group `browser`, which needs Node.js and npm: `pytest -m browser`. `UPGE_SCREENSHOTS=FOLDER` has it leave pictures.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support import tiny
from test_report import HOSTILE, a_run

import upge
from upge.report.study import write_study
from upge.report.write import write
from upge.study.exact import Setting, World
from upge.study.study import Case, study
from upge.train.run import train

PACKAGES = ("@sparticuz/chromium@147.0.0", "puppeteer-core@24.43.1")
SCRIPT = Path(__file__).parents[1] / "support" / "browsing.mjs"
VIEWS = [(width, scheme) for width in (390, 1440) for scheme in ("light", "dark")]
PAGES = ("run", "hostile", "both", "study")

BROKEN = """<!doctype html><title>broken</title><body style="width: 3000px"><main><p>wide</p></main>
<figure class="chart"><svg height="20" viewBox="0 0 9 20"><text x="-99">outside</text></svg></figure><p class="tip">
<img src="http://127.0.0.1:9/picture.png"><script>console.log("said"); nowhere()</script>"""
"""A page with every fault that is looked for."""

LR = "optimizer.lr={start: 0.00257, end: 0.00011, steps: 4, shape: linear}"
"""Its numbers need room beside the drawing."""

pytestmark = pytest.mark.browser

Seen = dict[tuple[str, int, str], dict[str, Any]]


@pytest.fixture(scope="session")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """What Chromium, which is installed for this session, has seen of each page in each view."""
    assert shutil.which("npm"), "the group `browser` needs Node.js and npm, to install Chromium and what drives it"
    place = tmp_path_factory.mktemp("browser")
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--prefix", place, *PACKAGES], check=True)
    shutil.copy(SCRIPT, place)
    asked = {"pages": pages(tmp_path_factory.mktemp("pages")), "screenshots": os.environ.get("UPGE_SCREENSHOTS")}
    finished = subprocess.run(
        ["node", place / SCRIPT.name], input=json.dumps(asked), capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    return {(each["name"], each["width"], each["scheme"]): each for each in json.loads(finished.stdout)}


def pages(folder: Path) -> dict[str, str]:
    """A run's page, that of one whose every text is hostile, and a comparison of the two."""
    run = train(upge.load(tiny.recipe(folder), ["eval.every=2", "train.steps=4", "eval.n=4", LR]))
    name = HOSTILE * 3
    hostile = a_run(folder / "hostile", name, text=HOSTILE * 20, recipe=f"name: {json.dumps(name)}\n# {'x' * 400}\n")
    both = write([run, hostile], folder / "both.html")
    (folder / "broken.html").write_text(BROKEN)
    return {
        "run": str(write([run])),
        "hostile": str(write([hostile])),
        "both": str(both),
        "study": str(studied(folder / "study.html")),
        "broken": str(folder / "broken.html"),
    }


def studied(place: Path) -> Path:
    """The page of a small study."""
    estimators = {name: upge.load(name).estimator for name in ("sft", "grpo")}
    case = Case(World((0.1, 0.5), vocabulary=2, length=2), Setting(prompts=2, n=2), count=40)
    return write_study(list(study(estimators, case, [0.0, 0.1])), place)


@pytest.mark.parametrize("view", VIEWS, ids=str)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_opens_without_errors_and_fits(page: str, view: tuple[int, str], seen: Seen) -> None:
    found = seen[page, *view]
    assert found["faults"] == []
    assert found["overflow"] <= 0
    assert found["wide"] == []
    assert found["flat"] == 0, "every drawing can be seen"
    assert found["outside"] == 0, "every label is on its drawing"


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_a_broken_page_is_seen_to_be_broken(view: tuple[int, str], seen: Seen) -> None:
    found = seen["broken", *view]
    told = " ".join(found["faults"])
    for fault in ("console: said", "error: nowhere is not defined", "request: http://127.0.0.1:9/picture.png"):
        assert fault in told
    assert found["overflow"] > 0
    assert len(found["wide"]) == 1
    assert (found["flat"], found["outside"]) == (1, 1)


def test_dark_is_dark(seen: Seen) -> None:
    for page in PAGES:
        light, dark = (
            sum(map(int, seen[page, 1440, scheme]["background"].strip("rgb()").split(",")))
            for scheme in ("light", "dark")
        )
        assert dark < 150 < 600 < light


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_responses_are_filtered_sorted_and_paged(view: tuple[int, str], seen: Seen) -> None:
    table = seen["run", *view]["table"]
    total = 4 * 8 * 6 + 3 * 6 * 4
    assert (table["all"], table["before"], table["second"]) == (f"1–20 of {total}", True, f"21–40 of {total}")
    place, least = table["ascending"]
    assert place == f"1–20 of {total}", "another order begins at its first page"
    assert set(least) == {"0"}
    right = int(table["right"].rpartition(" ")[2])
    assert 0 < right < total
    assert table["descending"] == (["1"] * right + ["0"] * 20)[:20]
    place, steps, streams = table["step"]
    assert place == "1–20 of 48"
    assert (set(steps), set(streams)) == ({"1"}, {"train"})
    assert set(table["problem"]) == {"p7"}
    assert (table["nothing"], table["again"]) == ("none", f"1–20 of {total}")
    assert table["open"] == 1


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_what_is_under_the_pointer_is_said(view: tuple[int, str], seen: Seen) -> None:
    found = seen["run", *view]
    text, gone = found["curve"]
    assert "step" in text
    assert "[" in text, "with its interval"
    assert gone
    assert "prompt" in found["spot"][0]
    assert found["legend"] == [1, 0]


@pytest.mark.parametrize("view", VIEWS, ids=str)
def test_tokens_are_coloured_by_their_weights(view: tuple[int, str], seen: Seen) -> None:
    found = seen["run", *view]["weights"]
    assert found["steps"] == ["0", "1", "2", "3"]
    assert "weight" in found["tip"][0]
    assert len(found["said"]) == 8
    for said, coloured in zip(found["said"], found["coloured"], strict=True):
        assert coloured == (said.startswith(("rl", "sft")) and "all weights 0" not in said), said
    assert any(found["coloured"])
