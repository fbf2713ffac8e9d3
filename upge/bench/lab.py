"""The lab's main job against a bare loop that draws as many samples and makes as many updates."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import torch

from upge.bench import bare
from upge.bench.timing import SECONDS, Table, in_turns, machine, seconds
from upge.model.loading import find
from upge.recipe.resolve import load
from upge.recipe.schema import Recipe
from upge.train.run import train
from upge.types import Context, Problem

RECIPE = "bench/lab"


def measure(*, steps: int = 8, repeats: int = 5) -> Table:
    """Seconds of `upge run bench/lab train.steps=STEPS`, measurements included, and of the loop."""
    recipe = load(RECIPE, [f"train.steps={steps}", f"optimizer.lr.steps={steps}"])
    torch.set_num_threads(recipe.train.threads or torch.get_num_threads())
    tokens: dict[str, int] = {}
    timings = in_turns({"upge": _ours(recipe, tokens), "bare": _bare(recipe, tokens)}, repeats=repeats)
    ratio = timings["upge"].ratio(timings["bare"])
    return Table(
        title=f"{steps} rollout batches of hybrid post-training on the lab, and its measurements",
        columns=["", SECONDS, "tokens sampled"],
        rows=[
            *([name, f"{timing:.1f}", str(tokens[name])] for name, timing in timings.items()),
            ["upge : bare", f"{ratio:.2f}", f"{tokens['upge'] / tokens['bare']:.2f}"],
        ],
        notes=[machine()],
        facts={"ratio": ratio.median, "seconds": seconds(timings), "tokens": tokens},
    )


def _ours(recipe: Recipe, tokens: dict[str, int]) -> Callable[[], None]:
    def run() -> None:
        with tempfile.TemporaryDirectory() as place, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            log = recipe.log.model_copy(update={"folder": f"{place}/run"})
            tokens["upge"] = _sampled(train(recipe.model_copy(update={"log": log})))

    return run


def _sampled(folder: Path) -> int:
    lines = (folder / "completions.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    return sum(len(json.loads(line)["tokens"]) for line in lines)


def _bare(recipe: Recipe, tokens: dict[str, int]) -> Callable[[], None]:
    with recipe.data.open(Context(seed=recipe.train.seed)) as session:
        steps, prompts = recipe.train.steps, recipe.train.prompts
        tasks = [_task(problem) for step in range(steps) for problem in session.take(step, prompts)]
        splits = [[_task(problem) for problem in session.split(name)] for name in recipe.eval.splits]
    folder = find(str(recipe.model.path))[0]

    def run() -> None:
        tokens["bare"] = bare.train(folder, tasks, splits, recipe.train.steps)[1]

    return run


def _task(problem: Problem) -> bare.Task:
    assert isinstance(problem.prompt, str)
    return problem.prompt, problem.answer or "", problem.demonstration or ""
