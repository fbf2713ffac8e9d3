"""Whole runs of a tiny model: what they leave, that they repeat, and that nothing but the recipe changes a gradient."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support.processes import command
from torch import Tensor
from transformers import AutoModelForCausalLM

import upge
from upge.errors import InputError
from upge.train.run import train

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tiny recipe with overrides, in a folder of its own."""

    def start(name: str = "run", *overrides: str, **blocks: Any) -> Path:
        path = tiny.recipe(tmp_path, **blocks)
        return train(upge.load(path, [f"log.folder={tmp_path / name}", *overrides]))

    return start


def metrics(folder: Path, phase: str = "train") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == phase]


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def largest_difference(a: Path, b: Path) -> float:
    ours, theirs = weights(a), weights(b)
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def same_bytes(a: Path, b: Path, *names: str) -> bool:
    return all((a / name).read_bytes() == (b / name).read_bytes() for name in names)


def test_a_run_leaves_its_folder(run: Run) -> None:
    folder = run()
    for name in ("recipe.yaml", "manifest.json", "metrics.jsonl", "timings.jsonl", "completions.jsonl", "summary.json"):
        assert (folder / name).stat().st_size > 0
    assert upge.load(folder / "recipe.yaml").train.steps == 5
    assert AutoModelForCausalLM.from_pretrained(folder / "model").config.hidden_size == 16
    first = metrics(folder)[0]
    assert first["rows"] == 8 * 6 + 8
    assert 0 < first["prompts/solved"] < 1
    assert first["share/rl"] + first["share/sft"] == 1
    assert first["share/rl"] == first["prompts/solved"]
    assert {"test/avg@2", "test/even/avg@2", "test/pass@2"} <= metrics(folder, "eval")[-1].keys()


def test_equal_runs_leave_equal_bytes(run: Run) -> None:
    one, other = run("one"), run("other")
    assert same_bytes(one, other, "metrics.jsonl", "completions.jsonl", "model/model.safetensors")


def test_another_seed_is_another_run(run: Run) -> None:
    assert not same_bytes(run("one"), run("other", "train.seed=1"), "completions.jsonl")


@pytest.mark.parametrize("size", [1, 7])
def test_the_generation_batch_changes_neither_completions_nor_metrics(run: Run, size: int) -> None:
    whole, pieces = run("whole"), run("pieces", f"rollout.engine.batch_size={size}")
    assert same_bytes(whole, pieces, "metrics.jsonl", "completions.jsonl", "model/model.safetensors")


@pytest.mark.parametrize(
    ("config", "dtype", "bound"), [(tiny.LLAMA, "float32", 1e-5), (tiny.GPT2, "float64", 1e-10)], ids=["llama", "gpt2"]
)
@pytest.mark.parametrize("several", [(), ("train.minibatches=2", "train.epochs=2")], ids=["one", "several"])
def test_micro_batches_do_not_change_the_parameters(
    run: Run, config: dict[str, Any], dtype: str, bound: float, several: tuple[str, ...]
) -> None:
    recorded = run("recorded", config=config)
    engine = f"rollout.engine={{use: recorded, run: {recorded}}}"
    replay = [engine, f"model.dtype={dtype}", "eval.splits=[]", *several]
    whole = run("whole", *replay, "train.micro_batch_tokens=1000000", config=config)
    single = run("single", *replay, "train.micro_batch_tokens=1", config=config)
    assert largest_difference(whole, single) <= bound
    assert metrics(single)[0]["updates/made"] == (4 if several else 1)


@pytest.mark.heavy
def test_two_processes_learn_what_one_does(run: Run, tmp_path: Path) -> None:
    one = run("one")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
    upge_run = [str(Path(sys.executable).parent / "upge"), "run", str(tmp_path / "recipe.yaml")]
    folder = tmp_path / "two"
    finished = subprocess.run(
        [*torchrun, *upge_run, f"log.folder={folder}"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert largest_difference(one, folder) < 1e-4
    ours, theirs = metrics(one), metrics(folder)
    assert [line["rows"] for line in ours] == [line["rows"] for line in theirs]
    assert ours[0]["reward"] == theirs[0]["reward"]
    assert ours[0]["grad_norm"] == pytest.approx(theirs[0]["grad_norm"], rel=1e-5)


def test_a_resumed_run_is_the_run_that_never_stopped(run: Run, tmp_path: Path) -> None:
    through = run("through", "train.save_every=2")
    stopped = run("stopped", "train.save_every=2", "train.steps=4")
    (stopped / "metrics.jsonl").write_text((stopped / "metrics.jsonl").read_text() + '{"phase": "train", "st')
    recipe = upge.load(tmp_path / "recipe.yaml", [f"log.folder={stopped}", "train.save_every=2"])
    train(recipe, resume=stopped)
    assert [line["step"] for line in metrics(stopped)] == [0, 1, 2, 3, 4]
    assert metrics(through) == metrics(stopped)
    assert same_bytes(through, stopped, "model/model.safetensors")


def test_an_existing_folder_is_never_written_over(run: Run) -> None:
    assert [run("same").name, run("same").name] == ["same", "same-2"]


def test_a_run_is_a_model(run: Run, tmp_path: Path) -> None:
    first = run("first")
    path = tiny.recipe(tmp_path)
    text = json.loads(path.read_text()) | {"model": str(first)}
    path.write_text(json.dumps(text))
    again = train(upge.load(path, [f"log.folder={tmp_path / 'again'}", "train.steps=0"]))
    assert same_bytes(first, again, "model/model.safetensors")


def test_several_optimizer_steps_use_the_ratio(run: Run) -> None:
    folder = run("epochs", "train.minibatches=2", "train.epochs=2", "optimizer.lr=0.05")
    lines = metrics(folder)
    assert max(line["updates/made"] for line in lines) == 4
    assert any(line.get("rl/ratio", 1.0) != pytest.approx(1.0, abs=1e-6) for line in lines)
    assert any(line.get("rl/masked", 0.0) > 0 for line in lines)


def test_a_step_without_signal_takes_no_optimizer_step(run: Run) -> None:
    rl = {"terms": {"rl": tiny.HYBRID["terms"]["rl"]}}  # type: ignore[index]
    folder = run("silent", "rollout.n=1", estimator=rl)
    lines = metrics(folder)
    assert [line["updates/made"] for line in lines] == [0.0] * 5
    assert [line["updates/without_signal"] for line in lines] == [1.0] * 5
    assert [line["rows/alive"] for line in lines] == [0.0] * 5


def test_no_rollouts_are_sampled_that_no_term_wants(run: Run) -> None:
    sft = {"terms": {"sft": tiny.HYBRID["terms"]["sft"]}}  # type: ignore[index]
    folder = run("imitation", "eval.splits=[]", estimator=sft)
    assert not (folder / "completions.jsonl").exists()
    losses = [line["sft/nll"] for line in metrics(folder)]
    assert losses[-1] < losses[0]


def test_non_finite_steps_are_skipped_and_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("accelerate.Accelerator.clip_grad_norm_", lambda *_: torch.tensor(float("nan")))
    folder = run("broken")
    assert [line["updates/not_finite"] for line in metrics(folder)] == [1.0] * 5
    assert "updates/made" in metrics(folder)[0]
    assert metrics(folder)[-1]["updates/made"] == 0


def test_a_gradient_above_the_limit_is_skipped(run: Run) -> None:
    assert metrics(run("guarded", "optimizer.skip_above=1e-9"))[0]["updates/skipped"] == 1


def test_truncated_rollouts(run: Run) -> None:
    kept, masked, zeroed = (run(mode, f"rollout.truncated={mode}", "rollout.max_tokens=2") for mode in MODES)
    assert metrics(kept)[0]["truncated"] > 0
    assert metrics(masked)[0]["reward"] == metrics(kept)[0]["reward"]
    assert metrics(masked)[0]["rl/tokens"] < metrics(kept)[0]["rl/tokens"]
    assert metrics(zeroed)[0]["reward"] <= metrics(kept)[0]["reward"]


MODES = ("keep", "mask", "zero_reward")


def test_a_demonstration_that_does_not_fit_is_left_out_and_counted(run: Run) -> None:
    line = metrics(run("short", "train.demonstration_tokens=2"))[0]
    assert 0 < line["demonstrations/too_long"] < 8


def test_learning(run: Run) -> None:
    folder = run("learning", "train.steps=60", "optimizer.lr=0.01")
    first, last = metrics(folder)[0], metrics(folder)[-1]
    assert last["reward"] > first["reward"] + 0.3
    assert last["share/sft"] < first["share/sft"]


def test_a_replay_with_other_settings_is_refused(run: Run) -> None:
    recorded = run("recorded")
    with pytest.raises(InputError, match="did not sample"):
        run("replay", f"rollout.engine={{use: recorded, run: {recorded}}}", "rollout.n=7")


def test_malformed_lines_are_reported_with_their_numbers(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"prompt": "a?", "answer": "a"}\n{"prompt": 3, "answer": "a"}\n{"prompt": "a?"}\nnot JSON\n')
    with pytest.raises(InputError) as caught:
        run("bad", f"data.path={path}")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["2", "3", "4"]


def test_mixed_precision_keeps_float32_parameters(run: Run) -> None:
    folder = run("mixed", "train.precision=bfloat16", "train.steps=2")
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float32}
    assert metrics(folder)[-1]["updates/made"] == 1


def test_a_part_that_goes_wrong_is_named_and_the_run_fails(run: Run, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    path = tiny.recipe(tmp_path)
    text = path.read_text().replace('"use": "clip", "low": 0.2, "high": 0.2', '"use": "mine.py:Broken"')
    path.write_text(text)
    finished = command("run", str(path), "--allow-code")
    assert finished.returncode == 1
    assert "Broken (estimator.terms.rl.mask.0) returned NaN" in finished.stderr
    assert "Traceback" not in finished.stderr
    assert command("run", str(path)).returncode == 2


BROKEN = '''
import upge

class Broken(upge.Mask):
    """Not a number."""

    def __call__(self, b):
        return b.ratio * float("nan")
'''


def test_a_recipe_is_run_from_python_by_one_call(tmp_path: Path) -> None:
    recipe = upge.load(tiny.recipe(tmp_path), [f"log.folder={tmp_path / 'here'}", "eval.splits=[]", "train.steps=1"])
    assert upge.train(recipe) == tmp_path / "here"
    from upge.train import trainer  # the package keeps its name, and what is in it

    assert callable(upge.train)
    assert trainer.Trainer
