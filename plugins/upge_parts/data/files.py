"""The base of sources that read files of rows: paths and patterns, and a file for each evaluation split."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import Field

from upge import Context, InputError, Problem
from upge_parts.data.columns import Columns, Row, gathered
from upge_parts.data.session import InMemory

Paths = str | tuple[str, ...]
MAGIC = frozenset("*?[")


class FromFiles(Columns):
    """The base of sources that read files: a path, a pattern such as `data/*.parquet`, or a list of these."""

    path: Paths = Field(min_length=1)
    """The file of training problems, relative to the working directory; a pattern (`*`) or a list names several."""
    evaluation: dict[str, Paths] = Field(default_factory=dict)
    """Files of evaluation problems by the name of their split."""

    @abstractmethod
    def rows(self, file: Path) -> Iterable[tuple[int, Row | ValueError]]:
        """The rows of a file, or what is wrong with them, with their numbers from 1. Raises InputError."""

    @contextmanager
    def open(self, context: Context) -> Iterator[InMemory]:
        evaluation = {name: self.read(paths) for name, paths in self.evaluation.items()}
        yield InMemory(self.read(self.path), evaluation, context.seed)

    def read(self, paths: Paths) -> list[Problem]:
        """The problems of some files, in the order of the files. Raises InputError with every malformed row."""
        files = matched(paths)
        names = labels(files)
        rows = ((file, number, row) for file in files for number, row in self.rows(file))
        problems = gathered(self, ((f"{file}:{number}", f"{names[file]}-{number}", row) for file, number, row in rows))
        if not problems:
            raise InputError(f"{', '.join(map(str, files))}: has no problems")
        return problems


def matched(paths: Paths) -> list[Path]:
    """The files that paths and patterns name, a pattern's in alphabetical order. Raises InputError."""
    files: list[Path] = []
    for path in (paths,) if isinstance(paths, str) else paths:
        place = Path(path)
        if not MAGIC & set(path) or place.exists():
            files.append(place)
            continue
        found = sorted(Path(place.anchor or ".").glob(str(place.relative_to(place.anchor))))
        if not found:
            raise InputError(f"{path}: no file has such a name")
        files += found
    return list(dict.fromkeys(files))


def labels(files: Iterable[Path]) -> dict[Path, str]:
    """What names a file in the ids of its problems: its name, or its path where several have that name."""
    files = list(files)
    stems = Counter(file.stem for file in files)
    return {file: file.stem if stems[file.stem] == 1 else file.with_suffix("").as_posix() for file in files}
