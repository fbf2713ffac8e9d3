"""Checkpoints of safetensors and JSON: weights, optimizer moments, the estimator's state, and where the run stands."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from upge.policy import adapting
from upge.run.learning import Learner
from upge.run.optimizing import Optimization


@dataclass(frozen=True)
class Progress:
    """Where a run stands: rollout batches done, problems taken from the data, and the data session's state."""

    step: int
    taken: int
    data: dict[str, Any]


def save(folder: Path, learner: Learner, progress: Progress) -> None:
    """Write a checkpoint; it appears whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_models(partial, learner, merge=False)
    for name, optimization in learner.optimizations().items():
        save_file(_moments(optimization), partial / f"{name}-optimizer.safetensors")
    state = {f"{place}/{name}": x for place, named in learner.state.items() for name, x in named.items()}
    save_file({name: x.detach().cpu().contiguous() for name, x in state.items()}, partial / "estimator.safetensors")
    updates = {name: optimization.updates for name, optimization in learner.optimizations().items()}
    where = {**asdict(progress), "updates": updates}
    (partial / "progress.json").write_text(json.dumps(where, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def save_models(folder: Path, learner: Learner, *, merge: bool) -> None:
    """Write the models in training, each into a folder of its own; see `Policy.save`."""
    learner.policy.save(folder / "model", merge=merge)
    if learner.critic is not None:
        learner.critic.critic.save(folder / "critic")


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run folder."""
    found = sorted(path for path in (run / "checkpoints").glob("step-*") if path.suffix != ".partial")
    return found[-1] if found else None


def restore(folder: Path, learner: Learner) -> Progress:
    """Take up a checkpoint; returns where the run stands."""
    where = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    updates = where.pop("updates")
    for name, optimization in learner.optimizations().items():
        shards = sorted((folder / name).glob("*.safetensors"))
        weights = {key: tensor for shard in shards for key, tensor in load_file(shard).items()}
        if adapting.adapted(optimization.model):
            adapting.restore(optimization.model, weights)
        else:
            optimization.model.load_state_dict(weights, strict=False)  # tied weights are saved once
        _restore_moments(optimization, load_file(folder / f"{name}-optimizer.safetensors"))
        optimization.updates = updates[name]
    for name, x in load_file(folder / "estimator.safetensors").items():
        place, _, key = name.rpartition("/")
        learner.state.setdefault(place, {})[key] = x.to(learner.accelerator.device)
    return Progress(**where)


def _moments(optimization: Optimization) -> dict[str, Tensor]:
    """The optimizer's tensors under `<parameter>/<moment>`."""
    found = {}
    for name, parameter in _trained(optimization):
        for moment, x in optimization.optimizer.state.get(parameter, {}).items():
            found[f"{name}/{moment}"] = torch.as_tensor(x).detach().cpu().contiguous()
    return found


def _restore_moments(optimization: Optimization, saved: dict[str, Tensor]) -> None:
    for name, parameter in _trained(optimization):
        own = {key.rpartition("/")[2]: x for key, x in saved.items() if key.rpartition("/")[0] == name}
        if own:
            optimization.optimizer.state[parameter] = {
                moment: x if moment == "step" else x.to(parameter.device) for moment, x in own.items()
            }


def _trained(optimization: Optimization) -> list[tuple[str, torch.nn.Parameter]]:
    named = optimization.model.named_parameters()
    return [(name, parameter) for name, parameter in named if parameter.requires_grad]
