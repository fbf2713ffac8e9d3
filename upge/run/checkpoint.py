"""Checkpoints of safetensors and JSON: weights, optimizer moments, the estimator's state, and where the run stands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from upge.run.learning import Learner


def save(folder: Path, learner: Learner, step: int, data: dict[str, Any]) -> None:
    """Write a checkpoint after `step` rollout batches; it appears whole or not at all."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    learner.policy.save(partial / "model")
    save_file(_moments(learner), partial / "optimizer.safetensors")
    state = {f"{place}/{name}": x for place, named in learner.state.items() for name, x in named.items()}
    save_file({name: x.detach().cpu().contiguous() for name, x in state.items()}, partial / "estimator.safetensors")
    where = {"step": step, "updates": learner.updates, "data": data}
    (partial / "progress.json").write_text(json.dumps(where, indent=2) + "\n", encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def latest(run: Path) -> Path | None:
    """The newest checkpoint of a run folder."""
    found = sorted(path for path in (run / "checkpoints").glob("step-*") if path.suffix != ".partial")
    return found[-1] if found else None


def restore(folder: Path, learner: Learner) -> tuple[int, dict[str, Any]]:
    """Take up a checkpoint: returns how many rollout batches are done, and the data session's state."""
    shards = sorted((folder / "model").glob("*.safetensors"))
    weights = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    learner.policy.model.load_state_dict(weights, strict=False)  # tied weights are saved once
    _restore_moments(learner, load_file(folder / "optimizer.safetensors"))
    for name, x in load_file(folder / "estimator.safetensors").items():
        place, _, key = name.rpartition("/")
        learner.state.setdefault(place, {})[key] = x.to(learner.accelerator.device)
    where = json.loads((folder / "progress.json").read_text(encoding="utf-8"))
    learner.updates = where["updates"]
    return where["step"], where["data"]


def _moments(learner: Learner) -> dict[str, Tensor]:
    """The optimizer's tensors under `<parameter>/<moment>`."""
    found = {}
    for name, parameter in _trained(learner):
        for moment, x in learner.optimizer.state.get(parameter, {}).items():
            found[f"{name}/{moment}"] = torch.as_tensor(x).detach().cpu().contiguous()
    return found


def _restore_moments(learner: Learner, saved: dict[str, Tensor]) -> None:
    for name, parameter in _trained(learner):
        own = {key.rpartition("/")[2]: x for key, x in saved.items() if key.rpartition("/")[0] == name}
        if own:
            learner.optimizer.state[parameter] = {
                moment: x if moment == "step" else x.to(parameter.device) for moment, x in own.items()
            }


def _trained(learner: Learner) -> list[tuple[str, torch.nn.Parameter]]:
    named = learner.policy.model.named_parameters()
    return [(name, parameter) for name, parameter in named if parameter.requires_grad]
