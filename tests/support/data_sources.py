"""Small data sets for tests of data sources, and what opens these."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

import upge
from upge import Context, Data, registry
from upge.part import SLOTS

LETTERS = [
    {"question": "a" * (1 + index % 4) + "?", "solution": {"final": "abc"[index % 3], "steps": ["=", "a"]}, "n": index}
    for index in range(20)
]
"""Rows whose answers are nested."""

MAPPED = {"prompt": "question", "answer": "solution.final", "demonstration": "solution.steps.-1", "id": "n"}
"""The mapping of these rows."""


def data(use: str, **parameters: Any) -> Data:
    """The data part of this name."""
    return registry.find(SLOTS["data"], use).model_validate(parameters)


def parquet(folder: Path, rows: list[dict[str, Any]], name: str = "rows.parquet") -> Path:
    """A Parquet file of rows."""
    folder.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / name)
    return folder / name


def lines(folder: Path, *rows: dict[str, Any] | str, name: str = "rows.jsonl") -> str:
    """A file of JSON lines, or of what stands in their place."""
    texts = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / name).write_text("\n".join(texts) + "\n")
    return str(folder / name)


def training(part: Data, count: int, seed: int = 0) -> list[upge.Problem]:
    """The first problems of a source."""
    with part.open(Context(seed=seed)) as session:
        return session.take(0, count)
