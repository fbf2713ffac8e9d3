"""Measures the lab's problems: draws candidates, samples the base model, sorts them into bands, writes the splits.

python -m upge_parts.data.lab.measure runs/lab-habit
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from upge import Context, Policy, Problem, Request, Sampling, load_policy
from upge_parts.data.lab.task import FAMILIAR, UNFAMILIAR, Side, Task, final_answer, generate
from upge_parts.engines.transformers_engine import Transformers

BUDGET = 96
"""Response tokens: the longest demonstration fits."""

SAMPLES = 64
"""Samples a problem, at temperature 1."""

SPLITS: dict[str, tuple[str, Side]] = {
    "train": (FAMILIAR, "train"),
    "test": (FAMILIAR, "test"),
    "ood": (UNFAMILIAR, "test"),
}
"""Letters, and side of the wall, of each split."""

LENGTHS = {"always": (1,), "sometimes": (2, 3, 4, 5), "never": (6, 7, 8)}
"""Chain lengths of each band's candidates; those that measure otherwise are left out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("model", help="the base model: a folder, a run, or package:folder")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent, help="where the splits are written")
    parser.add_argument("--train", type=int, default=160, help="training problems a share: 1, 2 and 2 a band")
    parser.add_argument("--each", type=int, default=48, help="problems of each band in test and ood")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    model = load_policy(given.model)
    for split in SPLITS:
        shares = {"always": given.train, "sometimes": 2 * given.train, "never": 2 * given.train}
        sizes = shares if split == "train" else dict.fromkeys(LENGTHS, given.each)
        chosen = [entry for band, size in sizes.items() for entry in fill(model, split, band, size)]
        lines = [json.dumps({"id": task.id, "band": band, "solved": right}) for task, band, right in chosen]
        (given.into / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(split, {band: sum(each == band for _, each, _ in chosen) for band in sizes}, flush=True)


def fill(model: Policy, split: str, band: str, size: int) -> list[tuple[Task, str, int]]:
    """The first `size` problems of a split that measure as `band`, with their successes."""
    found: dict[str, tuple[Task, str, int]] = {}
    for start in itertools.count(step=size):
        tasks = _candidates(split, band, range(start, start + size))
        for task, right in zip(tasks, successes(model, tasks), strict=True):
            if band_of(right) == band:
                found.setdefault(task.id, (task, band, right))
        if len(found) >= size:
            break
    return list(found.values())[:size]


def successes(model: Policy, tasks: Sequence[Task]) -> list[int]:
    """How many of 64 samples of each task are right."""
    templater = model.templater()
    prompts = [templater.prompt(Problem(task.id, task.prompt(), task.answer())) for task in tasks]
    requests = [
        Request("measure", 0, task.id, sample, prompt)
        for task, prompt in zip(tasks, prompts, strict=True)
        for sample in range(SAMPLES)
    ]
    with Transformers(batch_size=512).open(Context(policy=model)) as engine:
        completions = engine.sample(requests, Sampling(max_tokens=BUDGET))
    right = [
        final_answer(templater.text(completion.tokens)) == tasks[index // SAMPLES].answer()
        for index, completion in enumerate(completions)
    ]
    return [sum(right[start : start + SAMPLES]) for start in range(0, len(right), SAMPLES)]


def band_of(solved: int) -> str | None:
    """The band of a problem with so many right samples of 64; None for those between the bands."""
    if solved == 0:
        return "never"
    if solved >= 58:
        return "always"
    return "sometimes" if 2 <= solved <= 38 else None


def _candidates(split: str, band: str, indices: Iterable[int]) -> list[Task]:
    letters, side = SPLITS[split]
    lengths = LENGTHS[band]
    return [generate((split, band, index), [lengths[index % len(lengths)]], letters, side) for index in indices]


if __name__ == "__main__":
    main()
