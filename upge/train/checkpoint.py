"""Checkpoints of safetensors and JSON: weights, optimizer moments, the estimator's state, and where the run stands.

model/, critic/            weights in the Hub's format    model-optimizer.safetensors   moments, as <parameter>/<moment>
averages.safetensors       the policy's moving averages, where there are any; see `Models.state`
estimator.safetensors      the parts' state               progress.json                 see `Progress`
fields.json                what fields' sessions keep     fields.safetensors            their tensors, as <field>/<name>
random.json                each rank's generators         files.json                    size and SHA-256 of all others

A checkpoint is written aside, synced, and named once it is whole; only then do older ones go.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from upge.distributed.ranks import Ranks
from upge.distributed.strategies import Moments
from upge.errors import InputError, ModelError
from upge.files import is_count, parse_json
from upge.model import lora, shards
from upge.model.critic import Critic
from upge.model.models import Models
from upge.model.policy import Policy
from upge.part import State
from upge.rollouts.fields import OpenFields
from upge.runs import atomic_files
from upge.runs.folder import LOGS
from upge.runs.reader import RunReader, checkpoints
from upge.train import random_state
from upge.train.optimizer import Optimization

FILES = "files.json"
AVERAGES = "averages.safetensors"
MOMENTS = {"step", "exp_avg", "exp_avg_sq"}
"""What AdamW keeps of a parameter."""


class Trained(Protocol):
    """What a checkpoint is of: a `Learner`."""

    policy: Policy
    accelerator: Accelerator
    state: State
    models: Models
    fields: OpenFields

    def critic_model(self) -> Critic | None: ...
    def optimizations(self) -> dict[str, Optimization]: ...


@dataclass(frozen=True)
class Progress:
    """Where a run stands.

    Attributes:
        step: rollout batches done. measured: whether the measurement due after them is made.
        taken: problems taken from the data. data: its session's state.
        logged: the bytes of each log that belong to what is done.
        random: each rank's generators, see `randomness.state`; kept in a file of its own.
        health: what the health checks count, see `upge.train.health_checks`.
    """

    step: int
    measured: bool
    taken: int
    data: dict[str, Any]
    logged: dict[str, int]
    random: list[random_state.State] = field(default_factory=list)
    health: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint of a run, and its place, or None; and why newer ones can't be used."""

    place: Path | None
    progress: Progress | None
    damaged: dict[Path, str]


def save(run: Path, learner: Trained, progress: Progress, *, keep: int = 2, writes: bool = True) -> Path:
    """Write a checkpoint; it appears whole or not at all, and the `keep` newest stay.

    All ranks call it, and the one that `writes` writes: of sharded models each of them has a part.
    """
    place = run / "checkpoints" / f"step-{progress.step:06d}"
    moments = {name: each.strategy.moments(keep=writes) for name, each in learner.optimizations().items()}
    averages = learner.models.state(keep=writes)
    fields = learner.fields.state()
    if not writes:
        save_models(place, learner, merge=False, writes=False)
        return place
    with atomic_files.staging_dir(place) as partial:
        if averages:
            save_file(averages, partial / AVERAGES)
        _write(partial, learner, progress, moments)
        _write_fields(partial, fields)
        _write_json(partial / FILES, atomic_files.fingerprints(partial))
        atomic_files.publish(partial, place)
    for old in checkpoints(run)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return place


def _write(folder: Path, learner: Trained, progress: Progress, moments: dict[str, dict[str, Tensor]]) -> None:
    save_models(folder, learner, merge=False)
    for name, tensors in moments.items():
        save_file(tensors, folder / f"{name}-optimizer.safetensors")
    state = {f"{place}/{name}": x for place, named in learner.state.items() for name, x in named.items()}
    save_file({name: x.detach().cpu().contiguous() for name, x in state.items()}, folder / "estimator.safetensors")
    where = asdict(progress)
    _write_json(folder / "random.json", where.pop("random"))
    optimizers = {
        name: {"updates": each.updates, "not_finite": each.not_finite, "scaler": each.scaler()}
        for name, each in learner.optimizations().items()
    }
    _write_json(folder / "progress.json", where | {"optimizers": optimizers})


def _write_fields(folder: Path, states: Mapping[str, dict[str, Any]]) -> None:
    """The states of fields' sessions; no file where none has one."""
    if not states:
        return
    tensors = {(field, name): x for field, state in states.items() for name, x in state.items() if torch.is_tensor(x)}
    rest = {f: {n: x for n, x in state.items() if (f, n) not in tensors} for f, state in states.items()}
    _write_json(folder / "fields.json", rest)
    saved = {f"{field}/{name}": x.detach().cpu().contiguous() for (field, name), x in tensors.items()}
    save_file(saved, folder / "fields.safetensors")


def _fields(folder: Path) -> dict[str, dict[str, Any]]:
    """What `_write_fields` has written."""
    if not (folder / "fields.json").exists():
        return {}
    states: dict[str, dict[str, Any]] = parse_json((folder / "fields.json").read_text(encoding="utf-8"))
    for key, x in load_file(folder / "fields.safetensors").items():
        field, _, name = key.partition("/")
        states[field][name] = x
    return states


def generators(ranks: Ranks) -> list[random_state.State]:
    """The random generators of all ranks; all of them call it."""
    return ranks.all_gather([random_state.state()])


def restore_generators(progress: Progress, ranks: Ranks) -> None:
    """Put this process's random generators where the checkpoint has them, if it is of as many ranks."""
    if len(progress.random) == ranks.world:
        random_state.restore(progress.random[ranks.rank])


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False) + "\n", encoding="utf-8")


def save_models(folder: Path, learner: Trained, *, merge: bool, writes: bool = True) -> None:
    """Write the models in training, each into a folder of its own; see `Policy.save`."""
    learner.policy.save(folder / "model", merge=merge, writes=writes)
    if (critic := learner.critic_model()) is not None:
        critic.save(folder / "critic", writes=writes)


def leave(run: Path, learner: Trained, *, merge: bool, writes: bool = True) -> None:
    """Write the trained models into the run folder, each of them whole or not at all; all ranks call it."""
    if not writes:
        save_models(run, learner, merge=merge, writes=False)
        return
    with atomic_files.staging_dir(run / "trained") as partial:
        save_models(partial, learner, merge=merge)
        for model in sorted(partial.iterdir()):
            atomic_files.publish(model, run / model.name)


def rehearse(run: Path, learner: Trained, *, merge: bool, writes: bool = True) -> None:
    """Do once what `leave` will do, before there is anything to lose; all ranks call it. Nothing of it stays.

    Raises ModelError where the model can't be saved, and what the system says of the disk.
    """
    if not writes:
        _try_saving(run, learner, merge=merge, writes=False)
        return
    with atomic_files.staging_dir(run / "trial") as partial:
        _try_saving(partial, learner, merge=merge, writes=True)


def _try_saving(folder: Path, learner: Trained, *, merge: bool, writes: bool) -> None:
    remedy = "; model.lora.save: adapter avoids the merge" if merge and lora.adapted(learner.policy.model) else ""
    with _saveable("model", remedy):
        learner.policy.try_saving(folder / "model", merge=merge, writes=writes)
    if (critic := learner.critic_model()) is not None:
        with _saveable("critic"):
            critic.try_saving(folder / "critic", writes=writes)


@contextmanager
def _saveable(block: str, remedy: str = "") -> Iterator[None]:
    """Whatever befalls the saving of a model but what the system says of the disk becomes one line."""
    try:
        yield
    except (InputError, OSError):
        raise
    except Exception as error:  # whatever transformers and peft make of a model that they don't know
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        unsaved = f"{block}: what this run would train can't be saved ({reason}), so it isn't begun{remedy}"
        raise ModelError(unsaved) from error


def newest(run: RunReader) -> Found:
    """The newest checkpoint of a run that is whole, and whose logs are."""
    damaged: dict[Path, str] = {}
    for place in run.checkpoints:
        try:
            check(place)
            progress = _progress(place)
            if fault := run.lacks(progress.logged):
                raise ValueError(fault)
            return Found(place, progress, damaged)
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            damaged[place] = " ".join(str(error).split())
    return Found(None, None, damaged)


def check(place: Path) -> None:
    """Raise ValueError or OSError unless every file of a checkpoint is as it was written."""
    listed = parse_json((place / FILES).read_text(encoding="utf-8"))
    there = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()} - {FILES}
    if others := sorted(there - set(listed)):
        raise ValueError(f"{others[0]} is not of it")
    for name, told in listed.items():
        path = place / name
        if name not in there:  # nor is anything outside
            raise ValueError(f"{name} is missing")
        if path.stat().st_size != told["bytes"]:
            raise ValueError(f"{name} has {path.stat().st_size} bytes of {told['bytes']}")
        if atomic_files.fingerprint(path) != told:
            raise ValueError(f"{name} is not what was written")


def _progress(place: Path) -> Progress:
    where = parse_json((place / "progress.json").read_text(encoding="utf-8"))
    del where["optimizers"]
    progress = Progress(**where, random=parse_json((place / "random.json").read_text(encoding="utf-8")))
    counts = (progress.step, progress.taken, *progress.logged.values())
    sorts = {"measured": bool, "data": dict, "random": list, "health": dict}
    wrong = [name for name, sort in sorts.items() if not isinstance(getattr(progress, name), sort)]
    if wrong or not all(map(is_count, counts)) or not set(progress.logged) <= set(LOGS):
        raise ValueError("progress.json has no position of the run")
    return progress


def restore(folder: Path, learner: Trained) -> None:
    """Take up a checkpoint: the learner is where it was when that was saved.

    Raises InputError where it isn't one of this learner: other tensors than its own, or no tensors.
    """
    try:
        _restore(folder, learner)
    except InputError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{folder}: a checkpoint that can't be taken up ({type(error).__name__}: {reason})") from error


def _restore(folder: Path, learner: Trained) -> None:
    optimizers = parse_json((folder / "progress.json").read_text(encoding="utf-8"))["optimizers"]
    for name, optimization in learner.optimizations().items():
        files = sorted((folder / name).glob("*.safetensors"))
        weights = {key: tensor for file in files for key, tensor in load_file(file).items()}
        if lora.adapted(optimization.model):
            lora.restore(optimization.model, weights)
        else:
            _check_weights(optimization.model, weights)
            shards.load(optimization.model, weights)
        moments = load_file(folder / f"{name}-optimizer.safetensors")
        optimization.strategy.restore(_moments(optimization, moments))
        saved = optimizers[name]
        if not is_count(saved["updates"]) or not is_count(saved["not_finite"]):
            raise ValueError("progress.json doesn't count the updates")
        optimization.updates, optimization.not_finite = saved["updates"], saved["not_finite"]
        if saved["scaler"] and optimization.accelerator.scaler is not None:
            optimization.accelerator.scaler.load_state_dict(saved["scaler"])
    averages = folder / AVERAGES
    learner.models.restore(load_file(averages) if averages.is_file() else {})
    for name, x in load_file(folder / "estimator.safetensors").items():
        place, _, key = name.rpartition("/")
        if key not in learner.state.get(place, {}):
            raise ValueError(f"no part of the estimator has the state {name}")
        learner.state.setdefault(place, {})[key] = x.to(learner.accelerator.device)
    learner.fields.restore(_fields(folder))


def _check_weights(model: torch.nn.Module, saved: dict[str, Tensor]) -> None:
    """Raise ValueError unless there are weights for the model's every parameter, each of its shape and type."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    own = dict(model.named_parameters(remove_duplicate=False))
    for tied in names.values():
        found = [name for name in tied if name in saved]
        if not found:
            raise ValueError(f"it has no {tied[0]}")
        for name in found:
            if saved[name].shape != shards.shape(own[name]) or saved[name].dtype != own[name].dtype:
                raise ValueError(f"{name} is {_sort(saved[name])}, and the model's {_sort(own[name])}")


def _sort(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(shards.shape(x))}"


def _moments(optimization: Optimization, saved: dict[str, Tensor]) -> Moments:
    """Saved moments by parameter. Raises ValueError unless those of each are all there, and of its shape."""
    found: Moments = {}
    for name, parameter in optimization.strategy.trained():
        own = {key.rpartition("/")[2]: x for key, x in saved.items() if key.rpartition("/")[0] == name}
        if own and own.keys() != MOMENTS:
            raise ValueError(f"the moments of {name} are {', '.join(sorted(own))}")
        shape = shards.shape(parameter)
        if odd := [moment for moment, x in own.items() if x.shape != (() if moment == "step" else shape)]:
            raise ValueError(f"{name}/{odd[0]} is {_sort(own[odd[0]])}, and the parameter {_sort(parameter)}")
        if own:
            found[name] = own
    return found
