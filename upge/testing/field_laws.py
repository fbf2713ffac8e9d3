"""What fields owe: numbers of the declared shape, of each trajectory alone, and a state that survives a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from upge.part import BatchField
from upge.testing.fixtures import context, shown, shuffled, told_apart, world
from upge.testing.reward_laws import TEXTS, problems
from upge.types import Problem, Trajectory

STEPS = 3
"""Rollout batches that a session with a memory sees."""


def trajectories(step: int = 0) -> list[Trajectory]:
    """Rollouts and demonstrations of a few problems, of other lengths in every rollout batch."""
    made = []
    for place, problem in enumerate(problems()):
        rollouts = [_trajectory(problem, place, step, sample) for sample in range(1 + (place + step) % 3)]
        shown = [] if problem.demonstration is None else [_trajectory(problem, place, step, -1)]
        made += [*rollouts, *shown]
    return made


def _trajectory(problem: Problem, place: int, step: int, sample: int) -> Trajectory:
    text = problem.demonstration or "" if sample < 0 else TEXTS[(place + 3 * step + sample) % 7]
    text = text.format(answer=problem.answer) if sample >= 0 else text
    response = tuple(3 + (7 * place + sample + index) % 20 for index in range(1 + (2 * place + step + sample) % 5))
    reward = float((place + step + sample) % 2)
    return Trajectory(
        problem, (1, 2 + place), response, text, reward, sample < 0, sample=sample, group=place,
        rollout_logp=None if sample < 0 else tuple(-0.25 for _ in response),
    )  # fmt: skip


def check_numbers(part: BatchField, examples: int) -> None:
    """A number for each response token, or each trajectory; `width` of them where the part has one; none for none."""
    del examples
    with part.open(context()) as session:
        _observe(session, 0)
        for asked in (trajectories(), trajectories()[:1], []):
            _read(part, session, 0, asked)


def check_alone(part: BatchField, examples: int) -> None:
    """A trajectory's numbers don't depend on what is read beside or before it, on the machine, or on the time."""
    del examples
    asked = trajectories()
    with part.open(context()) as session:
        _observe(session, 0)
        wanted = _read(part, session, 0, asked)
    orders = {"in another order": shuffled(len(asked)), "with half of them": list(range(0, len(asked), 2))}
    for number, (how, order) in enumerate(orders.items()):
        with world(number), part.open(context()) as session:
            _observe(session, 0)
            for again in ("", ", for the second time"):
                some = _read(part, session, 0, [asked[index] for index in order])
                for index, numbers in zip(order, some, strict=True):
                    _same(numbers, wanted[index], asked[index], f", {how}{again}")


def check_prompts(part: BatchField, examples: int) -> None:
    """Of a field per prompt, the rows of a prompt's trajectories are equal."""
    del examples
    if part.per != "prompt":
        return
    asked = trajectories()
    with part.open(context()) as session:
        _observe(session, 0)
        rows = _read(part, session, 0, asked)
    first: dict[int, Tensor] = {}
    for each, numbers in zip(asked, rows, strict=True):
        _same(numbers, first.setdefault(each.group, numbers), each, ", beside others of its prompt")


def check_memory(part: BatchField, examples: int) -> None:
    """What it observed is in its state: JSON and tensors, from which another session goes on the same."""
    del examples
    restored: Any
    with part.open(context()) as session, part.open(context()) as restored, part.open(context()) as through:
        if not hasattr(session, "state"):
            return
        for step in range(STEPS):
            _observe(session, step)
            _observe(through, step)
        restored.restore(_saved(session.state()))
        for step in range(STEPS, 2 * STEPS):
            _observe(restored, step)
            _observe(through, step)
            asked = trajectories(step)
            pairs = zip(_read(part, restored, step, asked), _read(part, through, step, asked), strict=True)
            for each, (numbers, wanted) in zip(asked, pairs, strict=True):
                _same(numbers, wanted, each, ", with a restored state")


def check_leaves(part: BatchField, examples: int) -> None:
    """Trajectories are what they were: others read them too."""
    del examples
    asked = trajectories()
    before = [repr(each) + repr(each.problem.columns) for each in asked]
    with part.open(context()) as session:
        if hasattr(session, "observe"):
            session.observe(0, asked)
        _read(part, session, 0, asked)
    for each, was in zip(asked, before, strict=True):
        now = repr(each) + repr(each.problem.columns)
        assert now == was, f"it changes {_named(each)}: {told_apart(was, now)}"


def _observe(session: Any, step: int) -> None:
    if hasattr(session, "observe"):
        session.observe(step, [each for each in trajectories(step) if not each.demonstration])


def _read(part: BatchField, session: Any, step: int, asked: Sequence[Trajectory]) -> list[Tensor]:
    """What the session says of each trajectory, held to its shape."""
    numbers = session.read(step, list(asked))
    assert isinstance(numbers, Tensor), f"read: expected a tensor, got {type(numbers).__name__}"
    lengths = [len(each.response) for each in asked] if part.per == "token" else [1] * len(asked)
    shape = (sum(lengths),) if (width := part.width()) is None else (sum(lengths), width)
    assert tuple(numbers.shape) == shape, f"read: expected the shape {shape}, got {tuple(numbers.shape)}"
    assert not numbers.requires_grad, "read: expected detached numbers, got some that carry gradient"
    return list(numbers.split(lengths))


def _same(numbers: Tensor, wanted: Tensor, trajectory: Trajectory, how: str) -> None:
    # A model of less precision rounds in another way where a batch is packed in another way.
    bound = 1e-4 if numbers.is_floating_point() and numbers.dtype != torch.float64 else 1e-9
    if not torch.allclose(numbers.double(), wanted.double(), rtol=bound, atol=bound, equal_nan=True):
        found = f"expected {shown(wanted.tolist())}, got {shown(numbers.tolist())}"
        raise AssertionError(f"{_named(trajectory)}{how}: {found}")


def _named(trajectory: Trajectory) -> str:
    kind = "the demonstration" if trajectory.demonstration else f"rollout {trajectory.sample}"
    return f"{kind} of the problem '{trajectory.problem.id}'"


def _saved(state: dict[str, Any]) -> dict[str, Any]:
    """A state as a checkpoint keeps it."""
    tensors = {name: x.clone() for name, x in state.items() if isinstance(x, Tensor)}
    rest = {name: x for name, x in state.items() if name not in tensors}
    try:
        kept: dict[str, Any] = json.loads(json.dumps(rest, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"state: expected JSON and tensors, got {error}") from error
    return kept | tensors


LAWS = {
    "its numbers have the declared shape": check_numbers,
    "a trajectory's numbers depend on it and on the session's state alone": check_alone,
    "a prompt has one number": check_prompts,
    "its state survives a checkpoint": check_memory,
    "trajectories are what they were": check_leaves,
}
