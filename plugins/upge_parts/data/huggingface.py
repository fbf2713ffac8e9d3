"""Problems from a data set of the Hub, or one in its format on this machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import Field

from upge import Context, DataSession, InputError, Problem
from upge_parts.data.columns import Columns, Row, gathered
from upge_parts.data.session import InMemory
from upge_parts.data.streamed import Streamed
from upge_parts.data.texts import as_stored, plain_names


class HuggingFace(Columns):
    """A data set of the Hub, or a folder of one, by the library `datasets`; its columns are mapped to problems.

        path: openai/gsm8k    configuration: main    prompt: question    demonstration: answer    answer_after: "####"

    A folder may have files of data (Parquet, JSON, CSV), or be one that `save_to_disk` wrote. Code of a data set never
    runs: data sets that need it are refused. Without `id` a problem is named by its split and row. See docs/data.md.
    """

    path: str = Field(min_length=1)
    """The data set: its name on the Hub, or a folder."""
    configuration: str | None = None
    """Its configuration (subset); required if it has several and no default."""
    revision: str | None = None
    """A commit, tag or branch on the Hub; a commit makes a run repeatable even if the data set changes."""
    train: str = "train"
    """The split to train on, or a slice of it: `train[:90%]`."""
    evaluation: dict[str, str] = Field(default_factory=dict)
    """Splits, or slices, of the data set, by their names in evaluation."""
    streaming: bool = False
    """Read the training split as a stream, `window` rows at a time; for data too large to download or to store."""
    window: int = Field(default=4096, ge=1)
    """The number of consecutive rows of a stream that are shuffled together; 1 keeps the stream's order."""

    @contextmanager
    def open(self, context: Context) -> Iterator[DataSession]:
        source = Source(self)
        evaluation = {name: source.problems(split) for name, split in self.evaluation.items()}
        if self.streaming:
            stream = Streamed(source.stream, source.streamed, evaluation, context.seed, self.window)
            stream.take(0, 1)  # what is wrong with its first rows is better known now than later
            yield stream
        else:
            yield InMemory(source.problems(self.train), evaluation, context.seed)


@dataclass(frozen=True)
class Source:
    """A data set as its settings name it."""

    settings: HuggingFace

    def problems(self, split: str) -> list[Problem]:
        """A whole split. Raises InputError where it can't be had, or with its rows at fault."""
        found = self._loaded(split, streaming=False)
        rows = found.select_columns(self._heads(found, split))
        where, stored = f"{self.settings.path}, {split}, row", _as_stored(rows)
        numbered = ((f"{where} {number}", f"{split}-{number}", stored(row)) for number, row in enumerate(rows))
        problems = gathered(self.settings, numbered)
        if not problems:
            raise InputError(f"{self.settings.path}: the split '{split}' has no problems")
        return problems

    def stream(self) -> Iterator[Row]:
        """The training split's rows, from the first."""
        found = self._loaded(self.settings.train, streaming=True)
        if found.column_names is not None:
            found = found.select_columns(self._heads(found, self.settings.train))
        try:
            yield from map(_as_stored(found), found)
        except Exception as error:  # the network's, the format's, the library's
            raise self._fault(error, self.settings.train) from error

    def streamed(self, row: Row, number: int) -> Problem:
        """The problem in a row of the stream. Raises InputError."""
        place = f"{self.settings.path}, {self.settings.train}, row {number}"
        try:
            return replace(self.settings.problem(row, f"{self.settings.train}-{number}"), place=place)
        except ValueError as error:
            raise InputError(f"{place}: {error}") from error

    def _heads(self, rows: Any, split: str) -> list[str]:
        plain = rows.column_names if rows.features is None else plain_names(rows.features.arrow_schema)
        try:
            return self.settings.heads(rows.column_names, plain)
        except InputError as error:
            raise InputError(f"{self.settings.path}, {split}: {error}") from error

    def _loaded(self, split: str, *, streaming: bool) -> Any:
        try:
            saved = _saved(Path(self.settings.path), split, streaming)
            return self._load(split, streaming) if saved is None else saved
        except Exception as error:  # what the library raises depends on where the data are and how they are written
            raise self._fault(error, split) from error

    def _load(self, split: str, streaming: bool) -> Any:
        import datasets

        given = self.settings
        return datasets.load_dataset(
            given.path, given.configuration, split=split, revision=given.revision, streaming=streaming
        )

    def _fault(self, error: Exception, split: str) -> InputError:
        if isinstance(error, InputError):
            return error
        cause: BaseException = error
        while type(error).__module__.startswith("datasets") and cause.__cause__ is not None:
            cause = cause.__cause__  # the library says in its own words only that something went wrong
        error = cause if isinstance(cause, Exception) else error
        reason = (str(error).strip().splitlines() or [""])[0]
        return InputError(f"{self.settings.path}: the split '{split}' can't be had: {type(error).__name__}: {reason}")


def _as_stored(rows: Any) -> Callable[[Row], Row]:
    """What gives a row's numbers the digits that they are stored with; streams may not know their types."""
    schema = None if rows.features is None else rows.features.arrow_schema
    return lambda row: row if schema is None else as_stored(row, schema)


def _saved(folder: Path, split: str, streaming: bool) -> Any:
    """The split of what `save_to_disk` wrote; None for anything else. Raises InputError for an unknown split."""
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return None
    import datasets

    found = datasets.load_from_disk(folder)
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise InputError(f"{folder}: there is no split '{split}'; there are {', '.join(found)}")
        found = found[split]
    elif split != "train":
        raise InputError(f"{folder}: there is no split '{split}'; what was saved is one split, 'train'")
    return found.to_iterable_dataset() if streaming else found
