"""Writing reports: of one run beside its logs, of several where it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from upge.errors import InputError
from upge.report.comparison import comparison_page, groups_page
from upge.report.logs import logs_of, refuse_evaluations
from upge.report.page import run_page
from upge.runs import atomic_files
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


def written_to(place: Path, page: str) -> Path:
    """Write a page whole or not at all. Raises InputError: `place` can't be written."""
    try:
        atomic_files.write(place, page)
    except OSError as error:
        raise InputError(f"{place}: can't be written ({error.strerror or error})") from error
    return place
