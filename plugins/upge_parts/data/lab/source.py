"""The lab's problems, as measured and shipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from typing import Literal

from pydantic import Field

from upge import Context, Data, Problem
from upge_parts.data.lab.task import Task
from upge_parts.data.session import InMemory

Band = Literal["always", "sometimes", "never"]


class Lab(Data):
    """The lab's task: chains of operations on a row of letters, with a verifier and a teacher's demonstrations.

        prompt  "cafbde RSE?"      answer  "cebfad"

    Bands were measured with 64 samples of the lab's base model at temperature 1: `always`, `sometimes`, `never`
    (not one right). Splits: `test`, and `ood`, whose letters no training problem uses. See docs/lab.md.
    """

    bands: tuple[Band, ...] = ("always", "sometimes", "never")
    """The bands to train on; evaluation always has all."""
    development: int = Field(default=0, ge=0, le=400)
    """The number of training problems, of all bands, that are used as the evaluation split `dev` instead."""

    @contextmanager
    def open(self, context: Context) -> Iterator[InMemory]:
        splits = {name: shipped(name) for name in ("test", "ood")}
        given = shipped("train")
        if self.development:
            # The file goes band by band: equal strides take the same share of each.
            splits["dev"] = [given[index * len(given) // self.development] for index in range(self.development)]
        kept = {problem.id for problem in splits.get("dev", ())}
        training = [problem for problem in given if problem.band in self.bands and problem.id not in kept]
        yield InMemory(training, splits, context.seed)


def shipped(split: str) -> list[Problem]:
    """The problems of a shipped split: `train`, `test` or `ood`."""
    text = files("upge_parts.data.lab").joinpath(f"{split}.jsonl").read_text(encoding="utf-8")
    return [problem(Task.from_id(line["id"]), line["band"]) for line in map(json.loads, text.splitlines())]


def problem(task: Task, band: str | None = None) -> Problem:
    """A task as a problem with the teacher's demonstration."""
    columns = task.columns() | ({} if band is None else {"band": band})
    return Problem(task.id, task.prompt(), task.answer(), task.demonstration(), band, columns=columns)
