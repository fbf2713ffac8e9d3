"""What can befall a run whose code is right, in words: no memory, no disk, no folder, another process that failed."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from upge.errors import InputError, RunError, causes
from upge.estimator.part_errors import PartError
from upge.recipe.schema import Recipe
from upge.runs import status
from upge.runs.folder import RunFolder
from upge.runs.reader import checkpoints
from upge.runs.recipe_file import command
from upge.runs.signals import Stopped

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The system's numbers for a disk without room: it is full, or a quota or a limit on sizes is used up."""


@contextmanager
def accounted(recipe: Recipe, folder: RunFolder) -> Iterator[None]:
    """How a run ends stands in its status.json, and an error that ends it says how to go on."""
    try:
        with explained(recipe, folder.path):
            yield
    except BaseException as error:
        if folder.writes and (said := status.read(folder.path)) is not None:
            if said.state == "finished" and said.pid == os.getpid():  # what was open couldn't be closed
                error.add_note(f"the run is finished all the same; trained model: {folder.path / 'model'}")
            else:
                _record_failure(error, recipe, folder.path, said.step)
        raise


def _record_failure(error: BaseException, recipe: Recipe, folder: Path, step: int) -> None:
    """Keep in the folder how the run ended, and add to the error how to go on."""
    asked = isinstance(error, Stopped | KeyboardInterrupt | SystemExit)
    with suppress(OSError):
        status.note(folder, "stopped" if asked else "failed", step, "" if asked else str(error))
    if not isinstance(error, InputError):  # the same again would be as wrong
        error.add_note(_onwards(recipe, folder))


def _onwards(recipe: Recipe, folder: Path) -> str:
    found, again = checkpoints(folder), command(recipe, folder)
    if (folder / "code").is_dir():
        again += f"\n(with the code as it was, which the run keeps in {folder / 'code'}; mended code needs a new run)"
    if found:
        return f"to resume from {found[0].name}: {again}"
    return f"no checkpoint was saved (train.save_every); to start again from the beginning: {again}"


@contextmanager
def explained(recipe: Recipe, folder: Path) -> Iterator[None]:
    """Errors that are the machine's become a RunError that says what to do."""
    try:
        yield
    except Exception as error:
        wording = explain(error, recipe, folder)
        if wording is None:
            raise
        raise RunError(wording) from error


def explain(error: BaseException, recipe: Recipe, folder: Path) -> str | None:
    """What befell the run, if it is one of these: looked for in the error and in what caused it."""
    for each in causes(error):
        if said := _memory(each, recipe) or _disk(each, folder) or _others(each):
            # Python's own lack of memory is met where somebody's code asks for it; what that was comes first.
            return f"{error}\n{said}" if isinstance(each, MemoryError) and isinstance(error, PartError) else said
    return None


def _memory(error: BaseException, recipe: Recipe) -> str | None:
    text = " ".join(str(error).split())
    refused = "can't allocate memory" in text or "not enough memory" in text
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not (
        isinstance(error, RuntimeError) and refused
    ):
        return None
    engine = recipe.rollout.engine
    sizes = {f"rollout.engine.{name}": getattr(engine, name, None) for name in ("batch_size", "max_num_seqs")}
    sizes = {"train.micro_batch_tokens": recipe.train.micro_batch_tokens} | sizes
    lower = ", ".join(f"{name} (now {size})" for name, size in sizes.items() if size is not None)
    hint = "" if recipe.model.gradient_checkpointing else "; or set model.gradient_checkpointing: true"
    return f"out of memory: {text[:300] or type(error).__name__}\nlower {lower}{hint}"


def _disk(error: BaseException, folder: Path) -> str | None:
    if not isinstance(error, OSError):
        return None
    if error.errno in FULL:
        file = Path(error.filename or folder)
        return f"no room on the disk while writing {file}: {_free(file.parent)}; what was saved before is untouched"
    if error.errno == errno.ENOENT and not folder.is_dir():
        return f"the run folder {folder} is gone: something has removed or renamed it"
    if error.errno == errno.ENOENT and error.filename and Path(error.filename).is_relative_to(folder):
        return f"{error.filename} is gone while it is used: another program removes files in the run folder {folder}"
    return None


def _free(folder: Path) -> str:
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return "its size can't be read"
    return f"{usage.free / 2**20:.1f} MiB of {usage.total / 2**20:.1f} MiB are free"


def _others(error: BaseException) -> str | None:
    """Of several processes one has failed, and the others notice by its silence."""
    lost = isinstance(error, torch.distributed.DistBackendError) or (
        isinstance(error, RuntimeError) and "gloo" in str(error)
    )
    return "another process of this run has failed or ended; see its message" if lost else None
