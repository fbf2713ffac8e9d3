"""Measures the lab's problems: draws candidates, samples the base model, sorts them into bands, writes the splits.

python -m upge_parts.data.lab.measure runs/lab-habit
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
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

LENGTHS = (1, 1, 1, 2, 3, 4, 5, 6, 7, 8)
"""Chain lengths of the candidates, in turn; of the shortest only some are always solved."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("model", help="the base model: a folder, a run, or package:folder")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent, help="where the splits are written")
    parser.add_argument("--candidates", type=int, default=1600, help="training problems to measure")
    parser.add_argument("--train", type=int, default=160, help="training problems a share: 1, 2 and 2 a band")
    parser.add_argument("--each", type=int, default=48, help="problems of each band in test and ood")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)  # a model this small only waits for a second thread
    model = load_policy(given.model)
    for split, (letters, side) in SPLITS.items():
        count = given.candidates if split == "train" else given.candidates * 6 // 10
        candidates = _candidates(split, letters, side, count)
        solved = successes(model, candidates)
        sizes = {"always": given.train, "sometimes": 2 * given.train, "never": 2 * given.train}
        chosen = sort(candidates, solved, sizes if split == "train" else dict.fromkeys(sizes, given.each))
        lines = [json.dumps({"id": t.id, "band": band, "solved": right}) for t, band, right in chosen]
        (given.into / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(split, {band: sum(b == band for _, b, _ in chosen) for band in sizes})


def successes(model: Policy, tasks: Sequence[Task]) -> list[int]:
    """How many of 64 samples of each task are right."""
    templater = model.templater()
    prompts = [templater.prompt(_asked(task)) for task in tasks]
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


def sort(tasks: Sequence[Task], solved: Sequence[int], sizes: dict[str, int]) -> list[tuple[Task, str, int]]:
    """The first tasks of each band, up to its size, in the order of the bands."""
    found: dict[str, list[tuple[Task, str, int]]] = {band: [] for band in sizes}
    for task, right in zip(tasks, solved, strict=True):
        band = band_of(right)
        if band is not None and len(found[band]) < sizes[band]:
            found[band].append((task, band, right))
    return [entry for members in found.values() for entry in members]


def _candidates(split: str, letters: str, side: Side, count: int) -> list[Task]:
    drawn = (generate((split, index), [LENGTHS[index % len(LENGTHS)]], letters, side) for index in range(count))
    return list({task.id: task for task in drawn}.values())


def _asked(task: Task) -> Problem:
    return Problem(task.id, task.prompt(), task.answer())


if __name__ == "__main__":
    main()
