"""The benchmarks: what they time does the same work, and their commands run. How fast, no test says."""

from __future__ import annotations

import json
import statistics
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from support import tiny_models as models
from support.svg import keys, panels
from typer.testing import CliRunner

import upge
from upge.bench import bare, estimator, scaling, start, step, trl
from upge.bench.timing import Spread, Timing, in_turns
from upge.bench.trl import peak
from upge.bench.work import Work, distance, of_step
from upge.cli.main import app
from upge.errors import InputError
from upge.model.padding import PrefixSharing, collate


def test_candidates_take_turns_there_and_back() -> None:
    called: list[str] = []
    timings = in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, repeats=3, warmups=1)
    assert called == ["a", "b", "b", "a"] * 2
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_a_timing_tells_its_median_and_spread() -> None:
    timing = Timing((3.0, 1.0, 2.0, 10.0))
    assert timing.median == statistics.median([1, 2, 3, 10])
    assert timing.spread == Spread(2.5, 1, 10)
    assert f"{timing:.1f}" == "2.5 (1.0 to 10.0)"
    assert f"{timing.spread.times(1000):.0f}" == "2500 (1000 to 10000)"


def test_a_ratio_has_the_spread_of_its_rounds_and_a_rate_that_of_its_seconds() -> None:
    slow, fast = Timing((3.0, 4.0, 8.0)), Timing((1.0, 2.0, 2.0))
    assert slow.ratio(fast) == Spread(2, 2, 4)
    assert fast.rate(6) == Spread(3, 3, 6)


def test_a_peak_holds_what_was_had_and_let_go_of() -> None:
    size = 64 * 2**20

    def take() -> None:
        torch.ones(size // 4).sum()

    assert 0.95 * size < peak(take) < 1.5 * size  # the system counts in portions


@pytest.mark.parametrize(("prompts", "samples", "length"), [(1, 2, 1), (3, 4, 5), (4, 8, 72)])
def test_the_loss_by_hand_has_the_gradient_of_the_parts(prompts: int, samples: int, length: int) -> None:
    batch = estimator.made(prompts, samples, length)
    parts, hand = estimator.by_parts(batch)(), estimator.by_hand(batch, samples)()
    torch.testing.assert_close(parts, hand, rtol=1e-5, atol=1e-9)


def test_work_has_the_sizes_it_was_asked_for() -> None:
    work = Work(prompts=4, samples=6, prompt_tokens=32, shortest=3, longest=9, signal=0.5)
    assert [each.group for each in work.trajectories] == [group for group in range(4) for _ in range(6)]
    assert all(28 <= len(each.prompt) <= 36 and 3 <= len(each.response) <= 9 for each in work.trajectories)
    told = [{each.reward for each in work.trajectories if each.group == index} for index in range(4)]
    assert told == [{0, 1}, {0, 1}, {0}, {0}]
    assert work.tokens == sum(len(each.prompt) + len(each.response) for each in work.trajectories)


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_step_cannot_avoid_is_what_its_tree_of_tokens_needs(tied: bool) -> None:
    """Counted pair by pair, on a row for each prompt."""
    model = models.llama(tie_word_embeddings=tied)
    table = models.SIZE * 32
    body = sum(each.numel() for each in model.parameters()) - (1 if tied else 2) * table

    def by_hand(work: Work) -> float:
        fed = answered = pairs = 0
        for index in range(work.prompts):
            sequences = [(each.prompt, each.response) for each in work.trajectories if each.group == index]
            row = collate(sequences, 0, torch.device("cpu"), reach=PrefixSharing(1e12, branching=True))
            assert row.tokens.shape[0] == 1
            fed += row.tokens.numel()
            answered += row.targets.numel()
            pairs += int(row.mask.sum())
        return 6 * body * fed + 6 * table * answered + 12 * 32 * 2 * pairs

    work = Work(prompts=2, samples=3, prompt_tokens=8, shortest=2, longest=9)
    assert step.unavoidable(work, model) == by_hand(work)


def test_gradients_are_told_apart_by_all_their_parameters() -> None:
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)

    def step(scale: float) -> None:
        (scale * model(torch.tensor([[3.0, 4.0]]))).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    once, twice = (of_step(partial(step, scale), optimizer, model) for scale in (1.0, 2.0))
    assert {name: gradient.flatten().tolist() for name, gradient in once.items()} == {"weight": [3, 4], "bias": [1]}
    assert distance(twice, once) == pytest.approx(1)
    assert distance(once, once) == 0
    with pytest.raises(ValueError, match="bias"):
        distance(once, {"weight": once["weight"]})


def test_trl_needs_a_batch_size_that_divides_the_work() -> None:
    assert trl.batch_sizes(Work(prompts=3, samples=8)) == [4, 8]
    assert trl.batch_sizes(Work(prompts=3, samples=8), (6,)) == [6]
    with pytest.raises(InputError, match="--prompts times --samples: 6 trajectories"):
        trl.batch_sizes(Work(prompts=3, samples=2))


@pytest.mark.parametrize("name", ["step", "trl", "lab", "resume"])
def test_what_is_timed_is_the_shipped_method(name: str) -> None:
    """But for TRL's epsilon."""
    extended = {"step": "grpo", "trl": "grpo", "lab": "hpt", "resume": "hpt"}[name]
    overrides = ["estimator.terms.rl.advantage={use: group_norm, epsilon: 1e-4}"] if name == "trl" else []
    assert upge.load(f"bench/{name}").estimator == upge.load(extended, overrides).estimator


TINY = Work(2, 2, 8, 4, 4, signal=1.0, shape=scaling.shape(hidden=64, layers=1, vocabulary=64))


def test_each_size_grows_alone_and_by_doubling() -> None:
    sizes: dict[str, list[int]] = {}
    for point in scaling.points(TINY):
        sizes.setdefault(point.grows, []).append(point.size)
        grown = scaling.GROWTH[point.grows](TINY, 1)
        assert (point.name == "base") == (point.factor == 1) == (point.work == grown)
    assert sizes == {
        "prompts": [2, 4, 8, 16],
        "response tokens": [4, 8, 16, 32],
        "rollouts of a prompt": [2, 4, 8, 16],
        "vocabulary": [64, 128, 256, 512],
    }
    longest = [point.work for point in scaling.points(TINY) if point.grows == "response tokens"]
    assert [{len(each.response) for each in work.trajectories} for work in longest] == [{4}, {8}, {16}, {32}]


def test_a_step_holds_its_gradient_and_more_of_more_work() -> None:
    learner = TINY.learner(TINY.recipe())
    held = []
    for samples in (2, 8):
        step_of_it = scaling.Step(learner, replace(TINY, samples=samples))
        step_of_it.run()
        held.append(step_of_it.held())
    assert held[1] > held[0] > sum(4 * each.numel() for each in learner.policy.model.parameters())


@pytest.mark.heavy
def test_scaling_prints_its_numbers_and_draws_its_curves(tmp_path: Path) -> None:
    path = tmp_path / "curves.svg"
    sizes = ["--hidden", "64", "--layers", "1", "--vocabulary", "64", "--prompt-tokens", "8", "--response-tokens", "4"]
    answer = CliRunner().invoke(app, ["bench", "scaling", *sizes, "--repeats", "1", "--plot", str(path), "--json"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)
    assert list(told) == list(scaling.GROWTH)
    assert [found["size"] for found in told["vocabulary"]] == [64, 128, 256, 512]
    assert keys(path) == [*scaling.GROWTH, "in proportion"]
    for curves in panels(path).values():
        assert len(curves) == len(scaling.GROWTH) + 1
        rises = [(one[1] - other[1], other[0] - one[0]) for one, other in pairwise(curves[-1])]
        assert rises == [pytest.approx(rises[0], abs=0.2)] * (len(scaling.FACTORS) - 1)  # doublings, on both axes


def test_scaling_refuses_half_a_head_and_a_place_without_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--hidden: 100 is no multiple of 64"):
        scaling.shape(100, 1, 64)
    with pytest.raises(InputError, match=r"--plot: there is no folder .*nowhere$"):
        scaling.measure(TINY, plot=tmp_path / "nowhere" / "curves.svg")


def test_start_times_what_it_says() -> None:
    said = {name: " ".join(arguments) for name, arguments in start.COMMANDS.items()}
    assert all(words == f"-m {name}" for name, words in said.items() if name.startswith("upge"))


def test_starting_is_timed_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in set(start.COMMANDS) - {"python -c pass", "upge --help"}:
        monkeypatch.delitem(start.COMMANDS, name)
    answer = CliRunner().invoke(app, ["bench", "start", "--repeats", "1", "--json"])
    assert answer.exit_code == 0, answer.output
    seconds = json.loads(answer.stdout)["seconds"]
    assert seconds["upge --help"][0] > seconds["python -c pass"][0]


def test_the_bare_loop_chooses_as_the_recipe_does() -> None:
    """Of two prompts one is never right, and is imitated; the other one's rollouts have GRPO's weights."""

    def tokenizer(text: str) -> dict[str, list[int]]:
        return {"input_ids": list(map(ord, text))}

    tokenizer.eos_token_id = 1  # type: ignore[attr-defined]
    n = bare.N
    rewards = torch.tensor([[0.0] * n, [1.0] + [0.0] * (n - 1)])
    batch = [("p", "a", "xyz"), ("q", "b", "")]
    rows, signs, scales = bare.choose(tokenizer, batch, [[5]] * (2 * n), [[7, 1]] * (2 * n), rewards)
    assert rows == [([5], [*map(ord, "xyz"), 1])] + [([5], [7, 1])] * n
    length = [len(response) for _, response in rows]
    recipe = upge.load("hpt", [f"rollout.max_tokens={bare.LENGTH}"])
    logp = torch.zeros(sum(length), requires_grad=True)
    made = upge.Batch(
        logp=logp,
        trajectory=torch.arange(len(length)).repeat_interleave(torch.tensor(length)),
        group=torch.tensor([0] + [1] * n),
        demonstration=torch.tensor([True] + [False] * n),
        reward=torch.cat([torch.ones(1), rewards[1]]),
    )
    recipe.estimator.loss(made).backward()
    wanted = [-sign * scale for sign, scale, size in zip(signs, scales, length, strict=True) for _ in range(size)]
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, torch.tensor(wanted), rtol=1e-5, atol=1e-9)


@pytest.mark.heavy
def test_the_estimators_command_prints_its_numbers() -> None:
    answer = CliRunner().invoke(app, ["bench", "estimator", "--no-step", "--repeats", "1", "--json"])
    assert answer.exit_code == 0, answer.output
    assert {name for numbers in json.loads(answer.stdout).values() for name in numbers} == {"parts", "hand"}
