"""A disk that really fills while a checkpoint is written: the one before is good, and the run goes on from it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import tiny
from test_run_faults import When

import upge
from upge.errors import RunError
from upge.runs.reader import RunReader
from upge.train import checkpoint
from upge.train.run import train

SETTINGS = ("train.save_every=2", "log.completions=false", "eval.splits=[]")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A folder on a disk of 4 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root may mount a file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("left", [0.0, 0.5, 0.98])
def test_a_disk_that_fills_leaves_the_checkpoint_before_it(tmp_path: Path, small: Path, left: float) -> None:
    path, folder, ballast = tiny.recipe(tmp_path), small / "run", small / "ballast"
    whole = train(upge.load(path, [*SETTINGS, f"log.folder={tmp_path / 'whole'}"]))
    recipe = upge.load(path, [*SETTINGS, f"log.folder={folder}"])

    def fill() -> None:
        saved = sum(file.stat().st_size for file in (folder / "checkpoints").rglob("*") if file.is_file())
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(small).free - int(left * saved) // 4096 * 4096)))

    with pytest.raises(RunError, match=rf"no room on the disk while writing {folder}.*: .* MiB of 4.0 MiB are free"):
        train(recipe, display=When(3, fill))
    found = checkpoint.newest(RunReader(folder))
    assert found.progress is not None
    assert (found.progress.step, found.damaged) == (2, {})
    ballast.unlink()
    train(recipe, resume=folder)
    for name in ("metrics.jsonl", "summary.json", "model/model.safetensors"):
        assert (whole / name).read_bytes() == (folder / name).read_bytes(), name
