"""Where a run begins: in a new folder, or in one of its own from the newest checkpoint."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upge.errors import InputError
from upge.model.policy import Policy
from upge.recipe.schema import Recipe
from upge.recipe.yaml import plain
from upge.runs import atomic_files, status
from upge.runs.folder import RunFolder, free
from upge.runs.reader import RunReader, flat
from upge.runs.recipe_file import changed, command
from upge.schedule import Schedule
from upge.train import checkpoint
from upge.train.cautions import ended_rates
from upge.train.checkpoint import Found

KEYS = frozenset(Schedule.model_fields)
FOLLOWED = "train.steps"


def ended(recipe: Mapping[str, Any], done: int) -> dict[str, Schedule]:
    """The schedules of a resolved recipe, by dotted place, that are at their end once `done` steps are done."""
    return {place: each for place, each in _schedules(recipe, "") if each.steps <= done}


def _schedules(value: Any, place: str) -> Iterator[tuple[str, Schedule]]:
    if isinstance(value, Mapping) and value.keys() == KEYS:
        yield place, Schedule.model_validate(value)
        return
    within = (
        value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    )
    for key, each in within:
        yield from _schedules(each, f"{place}.{key}" if place else str(key))


def following(recipe: Recipe) -> list[str]:
    """The parameters of parts that are `train.steps` unless they are given, by dotted place."""
    return [
        f"{place}.{name}"
        for place, part in recipe.parts().items()
        for name, field in part.fields().items()
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("follows") == FOLLOWED
    ]


FREE = ("train.steps", "train.save_every", "train.keep", "eval.every", "health", "log")
"""What may be otherwise when a run goes on: none of it changes what a step does. Schedules may too, once they have
ended, and what follows `train.steps`."""


@dataclass(frozen=True)
class Start:
    """Where a run begins.

    Attributes:
        folder: the run's. found: the checkpoint to go on from; None: a new run.
        messages: what is worth knowing about it, in sentences.
    """

    folder: Path
    found: Found | None = None
    messages: tuple[str, ...] = ()


def choose(recipe: Recipe, resume: Path | None = None, *, again: bool = False) -> Start:
    """Where a run begins.

    Args:
        resume: the folder of the run to go on with.
        again: go on with the newest unfinished run of this very recipe, if there is one.

    Raises:
        InputError: nothing can go on there; the message says what would.
    """
    if resume is not None:
        return _going_on(recipe, RunReader(resume))
    left = unfinished(recipe)
    if again and left:
        return _going_on(recipe, RunReader(left[-1]))
    idle = [folder for folder in left if not status.busy(folder)]
    messages = (
        (f"{idle[-1]} is an unfinished run of this recipe; to resume it: {command(recipe, idle[-1])}",) if idle else ()
    )
    return Start(free(recipe.log.path(recipe.name)), messages=messages)


def unfinished(recipe: Recipe) -> list[Path]:
    """The folders of runs of this very recipe that have not come to their end, the newest last."""
    wanted = recipe.log.path(recipe.name)
    numbered = re.compile(re.escape(wanted.name) + r"(?:-(\d+))?")
    found = {}
    for path in wanted.parent.iterdir() if wanted.parent.is_dir() else ():
        matched = numbered.fullmatch(path.name)
        if matched and _is_unfinished(recipe, RunReader(path)):
            found[int(matched[1] or 1)] = path
    return [found[number] for number in sorted(found)]


def _is_unfinished(recipe: Recipe, run: RunReader) -> bool:
    if run.end is not None or not run.has_recipe:
        return False
    try:
        return not changed(recipe, run)
    except InputError:
        return False


def _going_on(recipe: Recipe, run: RunReader) -> Start:
    """The start of a run that goes on in its folder."""
    if not run.has_recipe:
        raise InputError(f"{run.folder} is not the folder of a run: it has no recipe.yaml")
    found = checkpoint.newest(run)
    done = max(found.progress.step if found.progress is not None else 0, run.end or 0)
    over = ended(plain(run.recipe), done)
    linked = following(recipe)
    _refuse_others(recipe, run, (*over, *linked))
    _refuse_finished(recipe, run, found)
    notes = [f"the checkpoint {place} is damaged: {fault}; it is ignored" for place, fault in found.damaged.items()]
    if run.end is not None:
        notes += _schedule_notes(recipe, run, over, linked)
    return Start(run.folder, found, (*notes, _history(run, found)))


def _schedule_notes(recipe: Recipe, run: RunReader, over: Mapping[str, Schedule], linked: Sequence[str]) -> list[str]:
    """What becomes of the schedules that a finished run has come to the end of, now that it goes on."""
    new, steps = [line.split(":")[0].strip() for line in changed(recipe, run)], recipe.train.steps
    notes = []
    for place, schedule in over.items():
        if any(f"{key}.".startswith(f"{place}.") for key in new):
            notes.append(f"{place} follows its new schedule from here on; the steps before followed the old one")
        elif schedule.end != 0 or place not in (f"{block}.lr" for block in ended_rates(recipe)):
            notes.append(
                f"{place} stays at {schedule.end:g}, the end of its schedule, reached at step {schedule.steps}"
            )
    was = run.settings.get("train.steps")
    values = dict(flat(recipe.model_dump(mode="json"), ""))
    notes += [
        f"{place} stays {was}, as train.steps was; to let it follow: {place}={steps}"
        for place in linked
        if place not in new and values.get(place) == was != steps
    ]
    return notes


def _history(run: RunReader, found: Found) -> str:
    ended = "the run's status is missing" if run.status is None else f"the run {run.status.outcome}"
    if found.progress is None:
        return f"{ended}; there is no checkpoint to resume from: starting again from its beginning"
    return f"{ended}; resuming from the checkpoint of step {found.progress.step}"


def _refuse_finished(recipe: Recipe, run: RunReader, found: Found) -> None:
    """Raise InputError where there is nothing left to do."""
    folder, last, steps = run.folder, run.end, recipe.train.steps
    done = found.progress.step if found.progress is not None else 0
    if steps < done:
        raise InputError(f"{folder}: {done} steps are done already; train.steps is {steps}")
    if last is None:
        return
    if found.progress is None:
        hint = f"no checkpoint to resume from; a new run may start from its model: model={folder}"
        raise InputError(f"{folder}: the run is finished, after {last} steps, and has {hint}")
    if steps <= last:
        more = _more(recipe, folder, last, 2 * max(1, last))
        raise InputError(f"{folder}: the run is finished, after {last} steps; to do more: {more}")
    if (end := ended_rates(recipe).get("optimizer", steps)) <= last:
        more = _more(recipe, folder, last, steps)
        raise InputError(
            f"{folder}: optimizer.lr is 0 from step {end} on, where its schedule ends, so more steps would change "
            f"nothing; to extend the schedule: {more}"
        )


def _more(recipe: Recipe, folder: Path, last: int, steps: int) -> str:
    """The command that goes on to `steps`, with longer schedules for the learning rates that have come to 0."""
    ways = (f" {block}.lr.steps={steps}" for block, end in ended_rates(recipe).items() if end <= last)
    return f"{command(recipe, folder)} train.steps={steps}" + "".join(ways)


def _refuse_others(recipe: Recipe, run: RunReader, ended: Sequence[str]) -> None:
    """Raise InputError with what differs, unless the recipe is the run's own. Args: ended: what is free besides."""
    if differing := changed(recipe, run, free=(*FREE, *ended)):
        head = f"{run.folder} was begun with other settings than these, and a run can't change its settings:"
        free = f"free to change are {', '.join(FREE)}, and schedules that have ended"
        raise InputError("\n".join([head, *differing, free]))


def describe(folder: RunFolder, recipe: Recipe, start: Start, policy: Policy) -> None:
    """Write into the run's folder what it is a run of, where that isn't there already."""
    if start.found is None or changed(recipe, RunReader(folder.path)):
        folder.describe(recipe, policy.vocabulary_fingerprint())


def evaluations(folder: RunFolder) -> list[dict[str, Any]]:
    """The evaluations of a run until the checkpoint that it is resumed from."""
    return RunReader(folder.path).measurements


def tidy(folder: RunFolder, found: Found) -> None:
    """Take back what was logged after the checkpoint, and tidy its folder of what nobody can go on from."""
    if folder.writes:
        _set_aside(folder.path, found.damaged)
    folder.rewind({} if found.progress is None else found.progress.logged)


def _set_aside(folder: Path, damaged: Mapping[Path, str]) -> None:
    """Rename damaged checkpoints, so that nothing takes them for whole ones, and remove those half written."""
    for place in damaged:
        kept = place.with_name(place.name + ".damaged")
        shutil.rmtree(kept, ignore_errors=True)
        place.rename(kept)
    for partial in [
        *(folder / "checkpoints").glob(f"*{atomic_files.PARTIAL}"),
        *folder.glob(f"*{atomic_files.PARTIAL}"),
    ]:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        else:
            partial.unlink()
