"""Problems from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from upge import InputError, regular_file
from upge_parts.data.columns import Row
from upge_parts.data.files import FromFiles
from upge_parts.data.texts import as_stored, plain_names


class Parquet(FromFiles):
    """Problems from Parquet files: a file, a pattern or a list of these, read by pyarrow.

        path: data/train-*.parquet      prompt: question      answer: reward_model.ground_truth

    Columns are mapped as for every source with columns (see docs/data.md), and of the others only
    those of numbers and texts are read. Without `id`
    a problem is named by its file and row. All problems stay in memory.
    """

    def rows(self, file: Path) -> Iterator[tuple[int, Row]]:
        """The rows of a file, in its order."""
        import pyarrow.parquet
        from pyarrow import ArrowException

        try:
            opened = pyarrow.parquet.ParquetFile(regular_file(file))
        except (OSError, ArrowException) as error:
            raise InputError(f"{file}: can't be read: {getattr(error, 'strerror', None) or error}") from error
        with opened:
            try:
                heads = self.heads(opened.schema_arrow.names, plain_names(opened.schema_arrow))
            except InputError as error:
                raise InputError(f"{file}: {error}") from error
            schema, number = opened.schema_arrow, 0
            try:
                for batch in opened.iter_batches(columns=heads):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, as_stored(row, schema)
            except (OSError, ArrowException, UnicodeDecodeError) as error:
                raise InputError(f"{file}: can't be read after row {number}: {error}") from error
