"""What the equation costs: an estimator made of parts against a loss written by hand, on the same log-probs.

Both start from log-probs, rewards and lengths, and end with the gradient with respect to the log-probs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from upge.batch import Batch
from upge.bench.measuring import Table, Timing, in_turns, machine
from upge.bench.work import Work
from upge.recipe import load

SIZES = ((4, 8, 72), (128, 8, 1024))
"""(prompts, responses to each, tokens of each): a step of the training benchmarks, and one of the paper's size."""


def measure(*, repeats: int = 5, step: bool = True) -> Table:
    """GRPO's loss and its gradient in both ways, and the share of a SmolLM2-sized training step that ours takes."""
    rows: list[list[str]] = []
    facts: dict[str, Any] = {}
    for prompts, samples, length in SIZES:
        batch = made(prompts, samples, length)
        timings = in_turns({"parts": by_parts(batch), "hand": by_hand(batch, samples)}, repeats=repeats, warmups=3)
        apart = float((by_parts(batch)() - by_hand(batch, samples)()).abs().max())
        ratio = timings["parts"].median / timings["hand"].median
        name = f"{prompts} × {samples} × {length} tokens"
        rows.append(
            [name, *(_milliseconds(timings[kind]) for kind in ("parts", "hand")), f"{ratio:.2f}", f"{apart:.0e}"]
        )
        facts[name] = {kind: timing.seconds for kind, timing in timings.items()}
    notes = [machine()]
    if step:
        share = _share(repeats)
        facts["share"] = share
        notes.insert(0, f"Of a training step of SmolLM2's size, {SIZES[0]}, the parts take {share:.2%}.")
    columns = ["rollouts", "parts, ms (least to most)", "by hand, ms (least to most)", "ratio", "largest difference"]
    return Table("GRPO from log-probs to their gradient", columns, rows, notes, facts)


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
    estimator = load("grpo").estimator
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


def _share(repeats: int) -> float:
    """The parts' time over that of a whole training step: forward, backward and optimizer."""
    prompts, samples, length = SIZES[0]
    work = Work(prompts, samples, shortest=length, longest=length, signal=1.0)
    learner = work.learner(work.recipe("grpo"))
    batch = made(prompts, samples, length)
    timings = in_turns({"parts": by_parts(batch), "step": lambda: learner.learn(0, work.grouped)}, repeats=repeats)
    return timings["parts"].median / timings["step"].median


def _milliseconds(timing: Timing) -> str:
    low, high = (1000 * seconds for seconds in timing.spread)
    return f"{1000 * timing.median:.2f} ({low:.2f} to {high:.2f})"
