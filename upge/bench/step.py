"""A training step whose responses share their prompt's pass against one that repeats it, and against the processor.

The gradients are compared first. Then both steps are timed in turns with a product of two square matrices, whose rate
is what the processor can do: a step's share of it counts the arithmetic that can't be avoided, and no padding, no
repeated prompt and no pair that the mask hides. A step is all that follows the rollouts; the learning rate is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import TYPE_CHECKING

import torch

from upge.bench.timing import SECONDS, Table, Timing, in_turns, machine, seconds
from upge.bench.work import Work, distance, of_learner
from upge.train.trainer import learn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from upge.train.learner import Learner

SIDE, PRODUCTS = 1024, 16
"""The matrices that are multiplied to learn the processor's rate, and how often a round does it."""


def measure(work: Work, *, repeats: int = 5) -> Table:
    """Time, tokens per second and share of the matrix product's rate, with shared and with repeated prompts."""
    learner = work.learner(work.recipe())
    ways = {name: stepping(learner, work, sharing=sharing) for name, sharing in (("shared", True), ("repeated", False))}
    apart = distance(*(of_learner(learner, way) for way in ways.values()))
    timings = in_turns({**ways, "product": _products()}, repeats=repeats)
    return _table(work, timings, apart, unavoidable(work, learner.policy.model))


def stepping(learner: Learner, work: Work, *, sharing: bool) -> Callable[[], None]:
    """A training step over the work, prompts shared or not."""

    def step() -> None:
        learner.policy.sharing = sharing
        learn(learner, 0, work.trajectories)

    return step


def unavoidable(work: Work, model: PreTrainedModel) -> float:
    """Floating-point operations of a step, forward and backward, that no way of running the rows can do without.

    6·P·(prompt tokens, once each, + response tokens but each last) + 6·V·d·(response tokens) + 12·d·layers·(pairs of
    a query and a key that it sees), where P counts the weights beside embeddings and head, and d is the hidden size.
    """
    config = model.config
    head = model.get_output_embeddings().weight
    tables = {id(head), id(model.get_input_embeddings().weight)}  # one where they are tied; looking up takes nothing
    body = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in tables)
    fed = answered = pairs = 0
    for _, members in groupby(work.trajectories, key=lambda trajectory: trajectory.group):
        trajectories = list(members)
        prompt, lengths = len(trajectories[0].prompt), [len(trajectory.response) for trajectory in trajectories]
        fed += prompt + sum(length - 1 for length in lengths)
        answered += sum(lengths)
        pairs += _below(prompt) + sum((length - 1) * prompt + _below(length - 1) for length in lengths)
    attention = 12 * config.hidden_size * config.num_hidden_layers * pairs
    return float(6 * body * fed + 6 * head.numel() * answered + attention)


def _below(length: int) -> int:
    """Pairs of tokens of which the first sees the second, itself included."""
    return length * (length + 1) // 2


def _products() -> Callable[[], None]:
    left, right = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)

    def multiply() -> None:
        for _ in range(PRODUCTS):
            torch.mm(left, right)

    return multiply


def _table(work: Work, timings: dict[str, Timing], apart: float, operations: float) -> Table:
    rate = PRODUCTS * 2 * SIDE**3 / timings["product"].median
    speedup = timings["repeated"].ratio(timings["shared"])
    share = {name: operations / timings[name].median / rate for name in ("shared", "repeated")}
    return Table(
        title=f"A training step on {work.prompts} × {work.samples} rollouts, prompts of {work.prompt_tokens} tokens",
        columns=["prompts", SECONDS, "tokens/s", "of the product's rate"],
        rows=[
            *(
                [name, f"{timings[name]:.2f}", f"{work.tokens / timings[name].median:.0f}", f"{share[name]:.0%}"]
                for name in share
            ),
            ["shared : repeated", "", f"{speedup:.2f}", ""],
        ],
        notes=[
            f"Tokens: {work.tokens}, prompts once a rollout. Responses of {work.shortest} to {work.longest}.",
            f"{operations / 1e9:.0f} GFLOP can't be avoided; torch.mm of {SIDE}² does {rate / 1e9:.0f} a second.",
            f"Gradients: ‖shared − repeated‖ / ‖repeated‖ = {apart:.1e}.",
            machine(),
        ],
        facts={
            "speedup": speedup.median,
            "gradient_distance": apart,
            "share": share,
            "unavoidable": operations,
            "product_rate": rate,
            "tokens": work.tokens,
            "seconds": seconds(timings),
        },
    )
