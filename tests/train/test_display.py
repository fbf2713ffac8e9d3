"""What a run shows of its steps where there is no terminal: whole lines, and what became of the updates."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console
from support import tiny

import upge
from upge.train.display import Display

MADE = {"updates/made": 1.0, "updates/without_signal": 0.0, "updates/not_finite": 0.0, "updates/skipped": 0.0}


def told(folder: Path, *steps: dict[str, float], start: int = 0) -> str:
    """What a run of these steps says on its way."""
    recipe = upge.load(tiny.recipe(folder), [f"train.steps={len(steps)}"])
    text = io.StringIO()
    with Display(progress=Console(file=text, width=40)) as display:
        display.begin(recipe, folder, start)
        for step, metrics in enumerate(steps):
            display.step({"step": step, "reward": 0.5, **metrics}, {"learn": 1.0})
        display.end([], folder)
    return text.getvalue()


def test_a_step_is_a_line_however_narrow_the_place(tmp_path: Path) -> None:
    lines = told(tmp_path, MADE, MADE).splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert len(steps) == 2
    assert all(line.endswith("s left") and len(line) > 40 for line in steps)
    assert not any("updates" in line or "no step" in line for line in lines)


@pytest.mark.parametrize(
    ("outcome", "said"),
    [("without_signal", "without signal 2"), ("not_finite", "not finite 2"), ("skipped", "above the norm to skip 2")],
)
def test_updates_that_were_not_taken_are_told(tmp_path: Path, outcome: str, said: str) -> None:
    nothing = MADE | {"updates/made": 0.0, f"updates/{outcome}": 2.0}
    text = told(tmp_path, MADE, nothing)
    assert f"updates {said}" in text
    assert "no step has changed the model" not in text
    text = told(tmp_path, nothing, nothing)
    assert f"no step has changed the model: {said[:-1]}4" in text
    assert f"no step since step 7 has changed the model: {said}" in told(tmp_path, nothing, start=7)


def test_a_run_that_had_nothing_to_learn_from_says_so(tmp_path: Path) -> None:
    assert "no step has changed the model: no rows to learn from" in told(tmp_path, MADE | {"updates/made": 0.0})


def test_only_what_a_trust_region_masks_is_clipped(tmp_path: Path) -> None:
    assert "clipped 0.250" in told(tmp_path, MADE | {"rl/masked": 0.25})
    assert "masked" not in told(tmp_path, MADE | {"rl/masked": 0.25})
    text = told(tmp_path, MADE | {"sft/masked": 0.5, "rl/masked": 0.25})
    assert "clipped 0.250  masked 0.500" in text
