"""What processes have left of rollout batches and runs (ranks.py), launched and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from ranks import TIED, Setting
from safetensors.torch import load_file
from torch import Tensor

from upge.policy.loading import open_policy
from upge.recipe import Recipe

BOUNDS = {"float32": 1e-5, "float64": 1e-10, TIED: 1e-5, "composite": 2e-4}
"""How far parameters and metrics may be apart, by the kind of model."""


def cases(settings: Sequence[Setting]) -> list[Any]:
    """Settings as pytest takes them: what has adapters needs their package."""
    adapted = {"lora": [pytest.mark.needs("peft")]}
    return [pytest.param(setting, id="-".join(setting), marks=adapted.get(setting[0], [])) for setting in settings]


Done = Callable[[int], Path]
"""The folder that so many processes have left."""


def launched(script: str, folders: pytest.TempPathFactory) -> Done:
    """What a script leaves; each number of processes is launched once, also where that fails."""

    @cache
    def outcome(processes: int) -> tuple[Path, AssertionError | None]:
        folder = folders.mktemp(f"{Path(script).stem}-{processes}")
        try:
            launch(script, processes, folder)
        except AssertionError as error:
            return folder, error
        return folder, None

    def done(processes: int) -> Path:
        folder, failure = outcome(processes)
        if failure is not None:
            raise failure
        return folder

    return done


def launch(script: str, processes: int, folder: Path) -> None:
    """Have so many processes do what a script beside this one says, and leave it in a folder."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*torchrun, str(Path(__file__).with_name(script)), str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr


def parameters(folder: Path, *setting: str) -> dict[str, Tensor]:
    return load_file(folder / f"{'-'.join(setting)}.safetensors")


def metrics(folder: Path, *setting: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / f"{'-'.join(setting)}.json").read_text())
    return found


def furthest(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def agree(ours: Path, theirs: Path, setting: Sequence[str], *prefix: str) -> None:
    """Parameters to the bound of their type, every metric of every rollout batch up to rounding."""
    bound = BOUNDS[setting[-1]]
    assert furthest(parameters(ours, *setting), parameters(theirs, *prefix, *setting)) <= bound
    for one, other in zip(metrics(ours, *setting), metrics(theirs, *prefix, *setting), strict=True):
        assert one == pytest.approx(other, rel=bound, abs=bound)


def reached_whole(found: Path, recipe: Recipe) -> None:
    """The weights that an engine was given are those of the recipe's model."""
    whole, given = open_policy(recipe).model.state_dict(), load_file(found / "model.safetensors")
    assert given.keys() == whole.keys()
    assert all(given[name].equal(x) for name, x in whole.items())


def trained(folder: Path) -> list[dict[str, Any]]:
    """A run's lines of training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "train"]
