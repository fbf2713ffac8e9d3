"""What processes have left of rollout batches and runs (ranks.py), launched and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pytest
from safetensors.torch import load_file
from support.ranks import TIED, Setting
from torch import Tensor

from upge.model.loading import load_policy
from upge.recipe import Recipe

BOUNDS = {"float32": 1e-5, "float64": 1e-10, TIED: 1e-5, "composite": 2e-4}
"""How far parameters and metrics may be apart, by the kind of model."""


def cases(settings: Sequence[Setting], few: Sequence[Setting] | None = None) -> list[Any]:
    """Settings as pytest takes them: what has adapters needs their package, and all but a few are heavy."""

    def marks(setting: Setting) -> list[pytest.MarkDecorator]:
        needs = [pytest.mark.needs("peft")] if setting[0] == "lora" else []
        return needs if few is None or setting in few else [*needs, pytest.mark.heavy]

    return [pytest.param(setting, id="-".join(setting), marks=marks(setting)) for setting in settings]


Done = Callable[[int], Path]
"""The folder that so many processes have left."""

Key = TypeVar("Key")


def launched(script: str, folders: pytest.TempPathFactory) -> Done:
    """What torchrun's processes leave that do what a script beside this file says."""

    def launch(processes: int) -> Path:
        folder = folders.mktemp(f"{Path(script).stem}-{processes}")
        run("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", beside(script), str(folder))
        return folder

    return once(launch)


def forked(script: str, folders: pytest.TempPathFactory, *words: str) -> Done:
    """The same by support/forked.py, which gives the script these words; one and two processes are of one start."""

    def fork(counts: str) -> Path:
        folder = folders.mktemp(Path(script).stem)
        run(beside("forked.py"), beside(script), counts, str(folder), *words)
        return folder

    left = once(fork)
    return lambda processes: left("1,2" if processes < 3 else str(processes)) / str(processes)


def beside(name: str) -> str:
    return str(Path(__file__).parent / name)


def once(begin: Callable[[Key], Path]) -> Callable[[Key], Path]:
    """Each is begun once, also where that fails."""

    @cache
    def outcome(key: Key) -> Path | AssertionError:
        try:
            return begin(key)
        except AssertionError as error:
            return error

    def left(key: Key) -> Path:
        found = outcome(key)
        if isinstance(found, AssertionError):
            raise found
        return found

    return left


def run(*words: str) -> None:
    tests = str(Path(__file__).parents[1])
    paths = os.pathsep.join(filter(None, [tests, os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    ended = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=environment)
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
    whole = load_policy(**recipe.policy_arguments()).model.state_dict()
    given = load_file(found / "model.safetensors")
    assert given.keys() == whole.keys()
    assert all(given[name].equal(x) for name, x in whole.items())


def trained(folder: Path) -> list[dict[str, Any]]:
    """A run's lines of training."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "train"]
