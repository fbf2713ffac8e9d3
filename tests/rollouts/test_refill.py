"""Dynamic sampling and phases: which prompts are sampled for, what replaces them, and what is counted."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import tiny

import upge
from upge.train.run import train

Run = Callable[..., Path]
RL = {**tiny.HYBRID["terms"]["rl"], "reduction": "token_mean"}  # type: ignore[index]
SFT = tiny.HYBRID["terms"]["sft"]  # type: ignore[index]
INFORMATIVE = {"use": "informative", "keep": "rl"}
GATE = {"use": "success_rate", "above": "rl", "otherwise": "sft"}
DYNAMIC = {"switch": INFORMATIVE, "terms": {"rl": RL}}
BOTH = {"switch": [GATE, INFORMATIVE], "terms": {"rl": RL, "sft": SFT}}

TRAIN = {"steps": 5, "prompts": 8, "demonstration_tokens": 4}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tiny recipe in a folder of its own; responses of one letter, so that it is right now and then."""

    def start(name: str, estimator: dict[str, Any], *overrides: str) -> Path:
        path = tiny.recipe(tmp_path, estimator=estimator, rollout={"max_tokens": 1}, train=TRAIN)
        return train(upge.load(path, [f"log.folder={tmp_path / name}", "eval.splits=[]", *overrides]))

    return start


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "train"]


def sampled(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "completions.jsonl").read_text().splitlines()]


def test_prompts_without_signal_are_replaced_and_counted(run: Run) -> None:
    lines = metrics(run("filled", DYNAMIC, "rollout.refill.rounds=20", "rollout.n=2"))
    assert sum(line["refill/discarded"] for line in lines) > 0
    for line in lines:
        assert line["prompts"] == 8
        assert line["refill/left"] == 0
        assert line["share/rl"] == 1
        assert line["rows"] == line["rows/alive"] == 16


def test_what_is_thrown_away_leaves_no_trace_in_the_counts(run: Run) -> None:
    """The batch is the survivors' alone: each of their rewards differ within the prompt."""
    folder = run("filled", DYNAMIC, "rollout.refill.rounds=20", "rollout.n=2", "train.steps=1")
    line = metrics(folder)[0]
    by_prompt = Counter((each["problem"], each["sample"] // 2) for each in sampled(folder) if each["reward"] > 0)
    informative = [key for key, solved in by_prompt.items() if solved == 1]
    assert len(informative) == 8
    assert len(sampled(folder)) == 16 + 2 * line["refill/discarded"]
    tokens = [len(e["tokens"]) for e in sampled(folder) if (e["problem"], e["sample"] // 2) in informative]
    assert line["rl/tokens"] == sum(tokens)


def test_rounds_are_bounded_and_the_rest_stays(run: Run) -> None:
    line = metrics(run("bounded", DYNAMIC, "rollout.refill.rounds=1", "rollout.n=2", "train.steps=1"))[0]
    assert line["refill/rounds"] == 1
    assert 0 < line["refill/discarded"] <= 8
    assert line["refill/left"] == 8 * (1 - line["share/rl"]) > 0
    assert line["prompts"] == 8


def test_without_refill_nothing_is_replaced_and_the_first_samples_are_the_same(run: Run) -> None:
    plain = run("plain", DYNAMIC, "train.steps=1", "rollout.n=2")
    filled = run("filled", DYNAMIC, "train.steps=1", "rollout.n=2", "rollout.refill.rounds=3")
    assert sampled(filled)[:16] == sampled(plain)
    assert "refill/rounds" not in metrics(plain)[0]


def test_problems_that_come_again_draw_other_noise(run: Run) -> None:
    folder = run("again", DYNAMIC, "rollout.refill.rounds=20", "rollout.n=2")
    for step in range(5):
        keys = [(each["problem"], each["sample"]) for each in sampled(folder) if each["step"] == step]
        assert len(set(keys)) == len(keys)


def test_the_next_batch_goes_on_after_the_replacements(run: Run) -> None:
    """Over an epoch of 24 problems each comes once, whether it was kept or thrown away."""
    folder = run("epoch", DYNAMIC, "rollout.refill.rounds=20", "rollout.n=2", "train.prompts=4", "train.steps=3")
    order = [each["problem"] for each in sampled(folder)[::2]]
    assert len(order) == 12 + sum(line["refill/discarded"] for line in metrics(folder))
    assert len(set(order[:24])) == len(order[:24])


def test_it_composes_with_a_gate(run: Run) -> None:
    """All wrong goes to imitation and stays; all right is worth nothing to either and is replaced."""
    lines = metrics(run("both", BOTH, "rollout.refill.rounds=20", "rollout.n=2"))
    assert sum(line["refill/discarded"] for line in lines) > 0
    for line in lines:
        assert line["share/rl"] + line["share/sft"] == 1
        assert line["share/sft"] == 1 - line["prompts/solved"]


@pytest.mark.heavy
def test_ranks_agree_on_every_round(run: Run, tmp_path: Path) -> None:
    one = run("one", BOTH, "rollout.refill.rounds=4", "rollout.n=3", "train.prompts=7")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
    upge_run = [str(Path(sys.executable).parent / "upge"), "run", str(tmp_path / "recipe.yaml"), "eval.splits=[]"]
    more = ["rollout.refill.rounds=4", "rollout.n=3", "train.prompts=7", f"log.folder={tmp_path / 'two'}"]
    finished = subprocess.run([*torchrun, *upge_run, *more], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    ours, theirs = metrics(one), metrics(tmp_path / "two")
    for name in ("refill/rounds", "refill/discarded", "refill/left", "rows", "prompts", "share/sft"):
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs]), name
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-5)


def test_a_resumed_run_takes_the_problems_that_were_next(run: Run, tmp_path: Path) -> None:
    several = ("rollout.refill.rounds=3", "rollout.n=2", "train.save_every=2")
    through = run("through", DYNAMIC, *several)
    stopped = run("stopped", DYNAMIC, *several, "train.steps=4")
    train(upge.load(tmp_path / "recipe.yaml", [f"log.folder={stopped}", "eval.splits=[]", *several]), resume=stopped)
    assert metrics(through) == metrics(stopped)
    assert (through / "completions.jsonl").read_bytes() == (stopped / "completions.jsonl").read_bytes()


def test_phases_sample_nothing_while_no_term_wants_it(run: Run) -> None:
    switch = {"use": "phases", "first": "sft", "then": "rl", "steps": 3}
    folder = run("phases", {"switch": switch, "terms": {"sft": SFT, "rl": RL}})
    assert {each["step"] for each in sampled(folder)} == {3, 4}
    lines = metrics(folder)
    assert ["reward" in line for line in lines] == [False, False, False, True, True]
    assert [line["rows"] for line in lines] == [8, 8, 8, 48, 48]
    assert [line["share/sft"] for line in lines] == [1, 1, 1, 0, 0]
