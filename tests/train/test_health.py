"""Health checks: what fails for long enough warns, once; a run that asks for it ends there, and may go on.

What a check counts is held against an independent count over random series; what it reads, against sums by hand.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from support import tiny

import upge
from upge.errors import RunError
from upge.recipe import RecipeError
from upge.recipe.schema import Check, Health
from upge.runs import status
from upge.train.display import Display
from upge.train.health_checks import SIGNS, HealthMonitor
from upge.train.run import train

UPGE = str(Path(sys.executable).parent / "upge")
RECIPES = Path(__file__).parents[2] / "recipes"
NAMES: tuple[str, ...] = get_args(Check)
SAME = ("metrics.jsonl", "completions.jsonl", "summary.json", "model/model.safetensors")
ALWAYS = ("health.no_signal={at_most: 1.0, patience: 2}", "train.save_every=0", "eval.every=3")
"""A check that no rollout batch passes."""

# check: (metric, healthy value, the last value that passes, the first that fails)
CASES = {
    "entropy_collapse": ("sampled_entropy", 0.5, 0.25, 0.2499),
    "kl_blowup": ("kl_old", 0.0, 0.125, 0.1251),
    "no_signal": ("signal", 0.5, 0.2501, 0.25),
    "clip_fraction": ("rl/masked", 0.0, 0.25, 0.2501),
    "length_explosion": ("truncated", 0.25, 0.4375, 0.4376),
    "repetition": ("repetition", 0.0, 0.25, 0.2501),
}
THRESHOLDS: dict[str, dict[str, float]] = {
    "entropy_collapse": {"below": 0.5},
    "kl_blowup": {"old": 0.125, "reference": 2.0},
    "no_signal": {"at_most": 0.25},
    "clip_fraction": {"above": 0.25},
    "length_explosion": {"above": 0.25},
    "repetition": {"above": 0.25},
}
series = st.lists(st.booleans(), max_size=12)
patiences = st.integers(1, 4)


def watch(patience: int = 1, **blocks: Any) -> HealthMonitor:
    checks = {name: {**its, "patience": patience} for name, its in THRESHOLDS.items()}
    return HealthMonitor(Health.model_validate({**checks, **blocks}), clipping=("rl",))


def line(name: str, *, failing: bool) -> dict[str, float]:
    metric, healthy, _, wrong = CASES[name]
    return {metric: wrong if failing else healthy}


def begun(over: HealthMonitor) -> HealthMonitor:
    """After a rollout batch that says what the start was like."""
    over.look(0, {metric: healthy for metric, healthy, _, _ in CASES.values()})
    return over


def marks(over: HealthMonitor, name: str, lines: Sequence[dict[str, float]]) -> list[float]:
    found = (over.look(1 + step, each)[0].get(f"health/{name}") for step, each in enumerate(lines))
    return [mark for mark in found if mark is not None]


# Counting.


def test_every_check_has_a_block_a_sign_and_a_case() -> None:
    assert set(NAMES) == set(SIGNS) == set(CASES) == set(Health.model_fields) - {"off", "stop"}


@pytest.mark.parametrize("name", NAMES)
@given(fails=series, patience=patiences)
def test_a_check_warns_after_so_many_failures_in_a_row(name: str, fails: list[bool], patience: int) -> None:
    expected = [
        float(step + 1 >= patience and all(fails[step + 1 - patience : step + 1])) for step in range(len(fails))
    ]
    assert marks(begun(watch(patience)), name, [line(name, failing=each) for each in fails]) == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_threshold_itself_is_where_it_stands(name: str) -> None:
    metric, _, passes, fails = CASES[name]
    assert marks(begun(watch()), name, [{metric: passes}, {metric: fails}]) == [0.0, 1.0]


@pytest.mark.parametrize("name", NAMES)
@given(fails=series, patience=patiences)
def test_it_is_told_once_and_so_is_its_end(name: str, fails: list[bool], patience: int) -> None:
    over, state = begun(watch(patience)), 0.0
    told: list[str] = []
    for step, each in enumerate(fails):
        mark, news = over.look(step, line(name, failing=each))
        now = mark[f"health/{name}"]
        assert bool(news) == (now != state)
        assert not news or (SIGNS[name].meaning in news[1] if now else news[0].startswith(f"health: {name} is over"))
        told, state = told + news, now
    assert all(name in each or each.startswith("  ") for each in told)


@given(
    fails=st.lists(st.lists(st.booleans(), min_size=len(NAMES), max_size=len(NAMES)), max_size=8), patience=patiences
)
def test_checks_do_not_touch_each_other(fails: list[list[bool]], patience: int) -> None:
    together = begun(watch(patience))
    apart = {name: begun(watch(patience, off=tuple(other for other in NAMES if other != name))) for name in NAMES}
    for step, its in enumerate(fails):
        named = zip(NAMES, its, strict=True)
        metrics = {metric: x for name, failing in named for metric, x in line(name, failing=failing).items()}
        found, told = together.look(step, dict(reversed(metrics.items())))
        alone = [apart[name].look(step, metrics) for name in NAMES]
        assert found == {key: mark for each, _ in alone for key, mark in each.items()}
        assert told == [sentence for _, each in alone for sentence in each]


@pytest.mark.parametrize("name", NAMES)
@given(fails=series, gaps=st.lists(st.integers(0, 2), min_size=12, max_size=12))
def test_a_rollout_batch_that_says_nothing_of_it_leaves_it(name: str, fails: list[bool], gaps: list[int]) -> None:
    lines = [line(name, failing=each) for each in fails]
    gaping = [each for own, gap in zip(lines, gaps, strict=False) for each in [*[{}] * gap, own]]
    assert marks(begun(watch(2)), name, gaping) == marks(begun(watch(2)), name, lines)


@given(fails=series, cut=st.integers(0, 12), name=st.sampled_from(NAMES))
def test_what_was_saved_goes_on_as_if_it_had_not_been(fails: list[bool], cut: int, name: str) -> None:
    lines = [{metric: healthy for metric, healthy, _, _ in CASES.values()} | line(name, failing=x) for x in fails]
    through, before, after = watch(2, stop=name), watch(2, stop=name), watch(2, stop=name)
    for step, each in enumerate(lines[:cut]):
        through.look(step, each), before.look(step, each)
    after.restore(json.loads(json.dumps(before.state())))
    for step, each in enumerate(lines[cut:], start=cut):
        assert through.look(step, each) == after.look(step, each)
        assert through.stops() == after.stops()


def test_a_checkpoint_from_before_there_were_checks_begins_them() -> None:
    over = watch()
    over.restore({})
    assert (over.failed, over.warned, over.first) == ({}, [], {})


@pytest.mark.parametrize("state", [{"failed": 3}, {"failed": {"no_signal": -1}}, {"warned": 1}, {"first": {"x": "1"}}])
def test_a_checkpoint_that_counts_nothing_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(upge.InputError, match="the state of the health checks"):
        watch().restore(state)


def test_what_is_off_is_forgotten_when_a_run_goes_on() -> None:
    before, after = begun(watch()), watch(off="repetition")
    before.look(9, line("repetition", failing=True) | line("kl_blowup", failing=True))
    after.restore(before.state())
    assert after.warned == ["kl_blowup"]
    assert "repetition" not in after.failed


def test_only_what_is_asked_for_ends_a_run() -> None:
    over = begun(watch(2, stop="repetition"))
    for fails in (["kl_blowup", "repetition"], ["kl_blowup", "repetition"]):
        assert over.stops() == []
        over.look(9, {key: value for name in fails for key, value in line(name, failing=True).items()})
    assert [each.partition(":")[0] for each in over.stops()] == ["repetition"]
    over.look(9, line("repetition", failing=False))
    assert over.stops() == []


# Reading.


@given(
    entropy=st.lists(st.floats(0.01, 10), min_size=1, max_size=12),
    scale=st.sampled_from([0.125, 0.5, 2.0, 8.0]),
)
def test_a_collapse_is_against_the_start_whatever_the_scale(entropy: list[float], scale: float) -> None:
    def of(values: list[float]) -> list[float]:
        over = watch()
        return [
            over.look(step, {"sampled_entropy": value})[0]["health/entropy_collapse"]
            for step, value in enumerate(values)
        ]

    assert of(entropy) == [float(now < 0.5 * entropy[0]) for now in entropy]
    assert of([scale * value for value in entropy]) == of(entropy)


def test_the_gradients_entropy_stands_in_for_the_rollouts() -> None:
    over = watch()
    read = [
        over.look(0, metrics)[0]
        for metrics in ({"entropy": 1.0}, {"entropy": 0.1, "sampled_entropy": 1.0}, {"entropy": 0.1})
    ]
    assert [each["health/entropy_collapse"] for each in read] == [0.0, 0.0, 1.0]


def test_either_divergence_is_one_too_many() -> None:
    over = watch()
    both = [{"kl_old": old, "kl_reference": reference} for old, reference in [(0, 0), (0, 3), (1, 0), (1, 3)]]
    assert [over.look(0, each)[0]["health/kl_blowup"] for each in both] == [0.0, 1.0, 1.0, 1.0]
    assert over.last["kl_blowup"].said.count("warns above") == 2


def test_a_teacher_is_far_at_the_start_and_only_what_the_distance_grows_by_is_a_blow_up(tmp_path: Path) -> None:
    path, teacher = tiny.recipe(tmp_path), tiny.tokenizer(tmp_path)
    assert not HealthMonitor.of(upge.load(path)).teacher
    over = HealthMonitor.of(upge.load(path, [f"reference.path={teacher}"]))
    lines = [{"kl_reference": kl} for kl in (3.0, 2.0, 3.9, 4.1)]
    assert [over.look(step, each)[0]["health/kl_blowup"] for step, each in enumerate(lines)] == [0.0, 0.0, 0.0, 1.0]
    assert over.last["kl_blowup"].said == "KL(π_θ‖π_0) 4.1 nats a token, 3 at the start; warns above 4"
    again = HealthMonitor.of(upge.load(path, [f"reference.path={teacher}"]))
    again.restore(over.state())
    assert again.look(4, {"kl_reference": 3.5})[0] == {"health/kl_blowup": 0.0}


@given(start=st.floats(0, 1), now=st.floats(0, 1))
def test_an_explosion_is_against_those_that_ended_at_the_start(start: float, now: float) -> None:
    over = watch()
    over.look(0, {"truncated": start})
    lost = over.look(1, {"truncated": now})[0]["health/length_explosion"]
    if lost:
        assert (1 - now) <= 0.75 * (1 - start) + 1e-12
    else:
        assert (1 - now) >= 0.75 * (1 - start) - 1e-12


def test_an_explosion_in_the_second_rollout_batch_is_not_over_in_the_third() -> None:
    over = watch(2)
    found = [
        over.look(step, {"truncated": share})[0] for step, share in enumerate([0.0, 1.0, 1.0, 0.98, 1.0, 1.0, 0.99])
    ]
    assert [each["health/length_explosion"] for each in found] == [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0]


def test_longer_responses_that_end_are_no_explosion() -> None:
    over = watch()
    found = [over.look(step, {"length": 2.0**step, "truncated": 0.0})[0] for step in range(10)]
    assert {each["health/length_explosion"] for each in found} == {0.0}


def test_the_worst_term_is_the_clip_fraction_and_no_other_mask_is() -> None:
    over = HealthMonitor(watch().settings, clipping=("a", "b"))
    metrics = {"a/masked": 0.1, "b/masked": 0.9, "c/masked": 1.0}
    assert over.look(0, metrics)[0] == {"health/clip_fraction": 1.0}
    assert "'b'" in over.last["clip_fraction"].said
    assert over.look(1, {"c/masked": 1.0})[0] == {}


def test_a_rollout_batch_without_prompts_teaches_nothing() -> None:
    assert watch().look(0, {"prompts": 0.0})[0] == {"health/no_signal": 1.0}
    assert watch().look(0, {"prompts": 4.0})[0] == {}


def test_masks_that_are_no_trust_regions_leave_tokens_out_on_purpose(tmp_path: Path) -> None:
    rl = tiny.HYBRID["terms"]["rl"]
    masks = {"plain": rl["mask"], "none": [], "weighed": [rl["mask"], {"use": "shaping", "gamma": 0.1}]}
    terms = {name: {**rl, "mask": mask} for name, mask in masks.items()}
    assert HealthMonitor.of(upge.load(tiny.recipe(tmp_path, estimator={"terms": terms}))).clipping == ("plain",)


# The recipe.


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("health.entropy_colapse={below: 0.1}", "did you mean 'entropy_collapse'?"),
        ("health.kl_blowup.olt=1.0", "did you mean 'old'?"),
        ("health.stop=[repetitions]", "did you mean 'repetition'?"),
        ("health.off=length_explosions", "did you mean 'length_explosion'?"),
        ("health.repetition.above=1.5", "less than or equal to 1"),
        ("health.repetition.patience=0", "greater than or equal to 1"),
        ("health={stop: repetition, off: [no_signal, repetition]}", "'repetition' is 'off' and can't end the run"),
    ],
)
def test_a_wrong_block_is_refused_in_words(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        upge.load(tiny.recipe(tmp_path), [override])
    assert words in str(caught.value)
    assert override.partition("=")[0] in str(caught.value)


def test_one_name_needs_no_list(tmp_path: Path) -> None:
    recipe = upge.load(tiny.recipe(tmp_path), ["health={stop: repetition, off: [no_signal]}"])
    assert (recipe.health.stop, recipe.health.off) == (("repetition",), ("no_signal",))
    assert Health.model_validate(recipe.health.model_dump()) == recipe.health


# Runs.

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tiny recipe with overrides, in a folder of its own; `resume` goes on there."""
    path = tiny.recipe(tmp_path)

    def start(name: str, *overrides: str, resume: bool = False, display: Display | None = None) -> Path:
        folder = tmp_path / name
        recipe = upge.load(path, [f"log.folder={folder}", *ALWAYS, *overrides])
        return train(recipe, resume=folder if resume else None, display=display)

    return start


def trained(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    return [each for each in lines if each["phase"] == "train"]


def test_a_run_ends_saved_where_a_check_asks_for_it_and_goes_on_to_the_same_bytes(run: Run, tmp_path: Path) -> None:
    through, folder = run("through"), tmp_path / "run"
    for done, resume in ((2, False), (3, True)):  # 3 is to be measured: it is, when the run goes on
        with pytest.raises(
            RunError, match=f"stopped after step {done} of 5, as health.stop requires: no_signal"
        ) as caught:
            run("run", "health.stop=no_signal", resume=resume)
        assert caught.value.__notes__ == [f"to resume from step-{done:06d}: upge run --resume {folder}"]
        found = status.read(folder)
        assert found is not None
        assert (found.state, found.step) == ("failed", done)
    run("run", resume=True)
    assert all((through / name).read_bytes() == (folder / name).read_bytes() for name in SAME)
    assert [each["health/no_signal"] for each in trained(folder)] == [0.0, 1.0, 1.0, 1.0, 1.0]


def test_a_run_whose_last_step_fails_comes_to_its_end(run: Run) -> None:
    folder = run("run", "health.stop=no_signal", "train.steps=2")
    assert [each["health/no_signal"] for each in trained(folder)] == [0.0, 1.0]
    assert (folder / "model" / "model.safetensors").exists()


def test_a_run_warns_once_and_what_is_off_is_not_there(run: Run) -> None:
    text = io.StringIO()
    folder = run("run", "health.off=[repetition]", display=Display(progress=Console(file=text)))
    assert text.getvalue().count("health: no_signal at step 1, 2 rollout batches in a row: ") == 1
    assert SIGNS["no_signal"].remedy in text.getvalue().replace("\n", " ")
    assert not any("health/repetition" in each for each in trained(folder))
    assert all("repetition" in each and "sampled_entropy" in each for each in trained(folder))


@pytest.mark.heavy
def test_of_two_processes_both_end_and_one_speaks(tmp_path: Path, run: Run) -> None:
    alone = trained(run("alone"))
    folder = tmp_path / "two"
    settings = [f"log.folder={folder}", *ALWAYS, "health.stop=[no_signal]"]
    command = [UPGE, "run", str(tmp_path / "recipe.yaml"), *settings, "--processes", "2"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("stopped after step 2 of 5, as health.stop requires: no_signal: ") == 1
    assert ended.stderr.count("health: no_signal at step 1") == 1
    assert "Traceback" not in ended.stderr
    assert f"to resume from step-000002: upge run --resume {folder}" in ended.stderr
    ours, theirs = trained(folder), alone[:2]
    for name in ("signal", "repetition", *(key for key in theirs[1] if key.startswith("health/"))):
        assert [each.get(name) for each in ours] == [each.get(name) for each in theirs]
    assert [each["sampled_entropy"] for each in ours] == pytest.approx(
        [each["sampled_entropy"] for each in theirs], rel=1e-4
    )


@pytest.mark.parametrize("name", ["grpo_kl", pytest.param("hpt", marks=pytest.mark.heavy)])
def test_the_defaults_are_silent_on_a_run_of_the_lab(name: str, tmp_path: Path) -> None:
    small = ["train.steps=6", "train.prompts=8", "train.minibatches=2", "eval.splits=[]", "train.check_problems=0"]
    text = io.StringIO()
    recipe = upge.load(RECIPES / f"{name}.yaml", [f"log.folder={tmp_path / 'run'}", *small])
    folder = train(recipe, display=Display(progress=Console(file=text)))
    assert "health:" not in text.getvalue()
    for each in trained(folder):
        found = {key.removeprefix("health/"): mark for key, mark in each.items() if key.startswith("health/")}
        assert found == dict.fromkeys(NAMES, 0.0)
