"""The cost of the equation: an estimator made of parts against a loss written by hand, on the same log-probs.

Both start from log-probs, rewards and lengths, and end with the gradient with respect to the log-probs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from upge.bench.timing import Table, Timing, in_turns, machine, seconds
from upge.bench.work import RECIPE, Work
from upge.estimator.batch import Batch
from upge.files import parse_json
from upge.model.loading import find
from upge.recipe.resolve import load
from upge.train.trainer import learn

SIZES = ((4, 8, 72), (32, 8, 1024), (128, 8, 1024))
"""(prompts, responses to each, tokens of each): the benchmarks' training step, a quarter of the paper's, and that."""


def measure(*, repeats: int = 5, step: bool = True) -> Table:
    """The loss and its gradient in both ways, and the share of a SmolLM2-sized training step that the parts take."""
    rows: list[list[str]] = []
    facts: dict[str, Any] = {}
    for size in SIZES:
        name = "{} × {} × {} tokens".format(*size)
        timings, apart = _measured(size, repeats)
        ratio = timings["parts"].ratio(timings["hand"])
        milliseconds = [f"{timing.spread.times(1000):.2f}" for timing in timings.values()]
        rows.append([name, *milliseconds, f"{ratio.median:.2f}", f"{apart:.0e}"])
        facts[name] = seconds(timings)
    notes = [machine()]
    if step:
        shares = facts["share"] = {name: _share(work, repeats) for name, work in works().items()}
        notes[:0] = [f"Of a training step of {name} the parts take {share:.2%}." for name, share in shares.items()]
    columns = ["rollouts", "parts, ms (least to most)", "by hand, ms (least to most)", "ratio", "largest difference"]
    return Table(f"The loss of {RECIPE}: from log-probs to their gradient", columns, rows, notes, facts)


def _measured(size: tuple[int, int, int], repeats: int) -> tuple[dict[str, Timing], float]:
    """Both ways' timings, and the largest difference of their gradients."""
    batch = made(*size)
    parts, hand = by_parts(batch), by_hand(batch, samples=size[1])
    timings = in_turns({"parts": parts, "hand": hand}, repeats=repeats, warmups=3)
    return timings, float((parts() - hand()).abs().max())


def made(prompts: int, samples: int, length: int) -> Batch:
    """Rollouts of equal length; π_θ has moved a little away from π_old."""
    random = torch.Generator().manual_seed(0)
    size = prompts * samples
    old = -torch.rand(size * length, generator=random) * 3
    return Batch(
        logp=(old + 0.2 * torch.randn(size * length, generator=random)).requires_grad_(),
        trajectory=torch.arange(size).repeat_interleave(length),
        group=torch.arange(prompts).repeat_interleave(samples),
        demonstration=torch.zeros(size, dtype=torch.bool),
        reward=torch.randint(0, 2, (size,), generator=random).float(),
        old_logp=old,
    )


def by_parts(batch: Batch) -> Way:
    """The shipped recipe's way."""
    estimator = load(RECIPE).estimator
    return Way(batch, lambda: estimator.loss(batch))


def by_hand(batch: Batch, samples: int) -> Way:
    """GRPO as a short script would have it, for groups of one size; tokens flat, as above."""
    length = batch.length.float()

    def loss() -> Tensor:
        assert batch.logp is not None
        assert batch.old_logp is not None
        rewards = batch.reward.view(-1, samples)
        deviation = rewards - rewards.mean(1, keepdim=True)
        advantage = (deviation / (rewards.std(1, keepdim=True) + 1e-6)).flatten()
        pushed = advantage[batch.trajectory]
        ratio = (batch.logp - batch.old_logp).exp()
        surrogate = torch.minimum(ratio * pushed, ratio.clamp(0.8, 1.2) * pushed)
        return -(surrogate / length[batch.trajectory]).sum() / batch.size

    return Way(batch, loss)


class Way:
    """One way to the gradient with respect to the log-probs."""

    def __init__(self, batch: Batch, loss: Callable[[], Tensor]) -> None:
        self.batch, self.loss = batch, loss

    def __call__(self) -> Tensor:
        assert self.batch.logp is not None
        return torch.autograd.grad(self.loss(), self.batch.logp)[0]


def works() -> dict[str, Work]:
    """Training steps: of a small model of the usual kind, and of the tiny one of the lab."""
    lab = parse_json((Path(find("upge_parts:data/lab/base")[0]) / "config.json").read_text(encoding="utf-8"))
    prompts, samples, length = SIZES[0]
    return {
        "SmolLM2": Work(prompts, samples, shortest=length, longest=length, signal=1.0),
        "the lab": Work(32, 8, prompt_tokens=16, shortest=40, longest=40, signal=1.0, shape=lab),
    }


def _share(work: Work, repeats: int) -> float:
    """The parts' time over that of a whole training step: forward, backward and optimizer."""
    learner = work.learner(work.recipe())
    batch = made(work.prompts, work.samples, work.longest)
    timings = in_turns(
        {"parts": by_parts(batch), "step": lambda: learn(learner, 0, work.trajectories)}, repeats=repeats
    )
    return timings["parts"].ratio(timings["step"]).median
