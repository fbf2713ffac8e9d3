"""The main job, whole: on the lab HPT solves what GRPO with the same seed, steps and samples cannot reach.

Minutes long, so `pytest -m flagship` runs it and plain `pytest` does not; CI does both.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.flagship
UPGE = str(Path(sys.executable).parent / "upge")
FINISHED = os.environ.get("UPGE_FINISHED_RUNS", "")
"""A folder of runs that the same commands have left already: CI's, from the README's first command."""


def run(name: str, folder: Path) -> list[dict[str, Any]]:
    """The metrics of a shipped recipe's run."""
    finished_before = Path(FINISHED, name)
    if FINISHED and (finished_before / "summary.json").is_file():
        return metrics(finished_before)
    finished = subprocess.run(
        [UPGE, "run", name, f"log.folder={folder / name}"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert "test/never" in finished.stdout
    return metrics(folder / name)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_hpt_learns_what_grpo_never_samples(tmp_path: Path) -> None:
    hpt, grpo = run("hpt", tmp_path), run("grpo", tmp_path)
    never, sometimes = (hpt[-1][f"test/{band}/avg@4"] for band in ("never", "sometimes"))
    assert never >= 0.25
    assert never >= 5 * grpo[-1]["test/never/avg@4"]
    assert sometimes > 0.8
    assert max(hpt[-1]["test/avg@4"], grpo[-1]["test/avg@4"]) < 0.9

    steps = [line for line in hpt if line["phase"] == "train"]
    first, last = steps[:10], steps[-10:]
    assert sum(line["share/sft"] for line in last) < 0.5 * sum(line["share/sft"] for line in first)
    assert sum(line["prompts/solved"] for line in last) > sum(line["prompts/solved"] for line in first)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    assert peak < 2, f"{peak:.2f} GiB"
