"""Writing reports: of one run beside its logs, of several where it is asked for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from upge.errors import InputError
from upge.estimator.part_errors import PartError
from upge.recipe.faults import RecipeError
from upge.recipe.resolve import load
from upge.recipe.schema import Recipe
from upge.report import responses
from upge.report.comparison import comparison_page, groups_page
from upge.report.html import written_to
from upge.report.logs import Logs, refuse_evaluations
from upge.report.page import run_page
from upge.runs.curves import Run, opened
from upge.sweep.groups import Group

FILE = "report.html"
COMPARISON = "comparison.html"


def write(folders: Sequence[Path], place: Path | None = None, *, allow_code: bool = False) -> Path:
    """Write the report of a run, or the comparison of several; returns where it is.

    Args:
        folders: run folders, of runs that may still go on. place: the file; by default `report.html` in the run's
            folder, or `comparison.html` here. allow_code: recipes may name classes in files.

    Raises:
        InputError: a folder is none of a run, what is in it can't be read, or `place` can't be written.
    """
    refuse_evaluations(folders)
    return write_runs(opened(folders), place, allow_code=allow_code)


def write_runs(runs: Sequence[Run], place: Path | None = None, *, allow_code: bool = False) -> Path:
    """Write the report of an opened run, or the comparison of several; see `write`."""
    logs = [logs_of(run, allow_code=allow_code) for run in runs]
    place = place or (runs[0].folder / FILE if len(runs) == 1 else Path(COMPARISON))
    return written_to(place, run_page(logs[0]) if len(logs) == 1 else comparison_page(logs))


def write_groups(groups: Sequence[Group], place: Path) -> Path:
    """Write the comparison of runs by recipe, each with several seeds. Raises InputError as `write`."""
    return written_to(place, groups_page(groups))


def logs_of(run: Run, *, allow_code: bool = False) -> Logs:
    """The logs of an opened run."""
    recipe, refused = _recipe(run.files.recipe_file, allow_code=allow_code)
    return Logs(run, recipe, refused, responses.read(run.files))


def _recipe(path: Path, *, allow_code: bool) -> tuple[Recipe | None, str]:
    """The recipe, or why it can't be loaded: a plugin that isn't installed here, say."""
    here = f"log.folder={json.dumps(str(path.parent))}"  # a run that was moved; nothing is written there by this recipe
    try:
        return load(path, [here], allow_code=allow_code), ""
    except (RecipeError, InputError, PartError) as error:
        return None, str(error).splitlines()[0]
