"""The benchmarks: what they time does the same work, and their commands run. How fast, no test says."""

from __future__ import annotations

import json
import statistics

import models
import pytest
import torch
from typer.testing import CliRunner

import upge
from upge.bench import bare, estimator, step
from upge.bench.measuring import Timing, in_turns
from upge.bench.memory import peak
from upge.bench.work import Work
from upge.command import app
from upge.policy.rows import collate


def test_candidates_take_turns_there_and_back() -> None:
    called: list[str] = []
    timings = in_turns({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, repeats=3, warmups=1)
    assert called == ["a", "b", "b", "a"] * 2
    assert [len(timing.seconds) for timing in timings.values()] == [3, 3]


def test_a_timing_tells_its_median_and_spread() -> None:
    timing = Timing((3.0, 1.0, 2.0, 10.0))
    assert timing.median == statistics.median([1, 2, 3, 10])
    assert timing.spread == (1, 10)


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
    assert [group for group, _ in work.grouped] == [group for group in range(4) for _ in range(6)]
    assert all(28 <= len(each.prompt) <= 36 and 3 <= len(each.response) <= 9 for _, each in work.grouped)
    told = [{each.reward for group, each in work.grouped if group == index} for index in range(4)]
    assert told == [{0, 1}, {0, 1}, {0}, {0}]
    assert work.tokens == sum(len(each.prompt) + len(each.response) for _, each in work.grouped)


@pytest.mark.parametrize("tied", [False, True])
def test_what_a_step_cannot_avoid_is_what_its_tree_of_tokens_needs(tied: bool) -> None:
    """Counted pair by pair, on a row for each prompt."""
    model = models.llama(tie_word_embeddings=tied)
    table = models.SIZE * 32
    body = sum(each.numel() for each in model.parameters()) - (1 if tied else 2) * table

    def by_hand(work: Work) -> float:
        fed = answered = pairs = 0
        for index in range(work.prompts):
            sequences = [(each.prompt, each.response) for group, each in work.grouped if group == index]
            row = collate(sequences, 0, torch.device("cpu"), reach=1e12)
            assert row.tokens.shape[0] == 1
            fed += row.tokens.numel()
            answered += row.targets.numel()
            pairs += int(row.mask.sum())
        return 6 * body * fed + 6 * table * answered + 12 * 32 * 2 * pairs

    work = Work(prompts=2, samples=3, prompt_tokens=8, shortest=2, longest=9)
    assert step.unavoidable(work, model) == by_hand(work)


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


def test_the_estimators_command_prints_its_numbers() -> None:
    answer = CliRunner().invoke(app, ["bench", "estimator", "--no-step", "--repeats", "1", "--json"])
    assert answer.exit_code == 0, answer.output
    assert {name for numbers in json.loads(answer.stdout).values() for name in numbers} == {"parts", "hand"}
