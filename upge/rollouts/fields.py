"""The fields that a recipe names: their sessions, open, and what these say of a rollout batch's trajectories."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.part_errors import ContractViolation, attribute_errors
from upge.model.policy import Policy
from upge.part import BatchField
from upge.recipe.schema import Recipe
from upge.rollouts import sessions
from upge.rollouts.rollout_batch import RolloutBatch
from upge.types import Context, Trajectory


@dataclass(frozen=True)
class OpenField:
    """A field's part, and its session."""

    name: str
    part: BatchField
    session: Any

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """What the session says of these trajectories, held to its shape."""
        numbers: Any = self.session.read(step, trajectories)
        with attribute_errors(self.part, f"fields.{self.name}"):
            if not isinstance(numbers, Tensor):
                raise ContractViolation(f"returned {type(numbers).__name__} from `read`; it should return a tensor")
            wanted = self._wanted(trajectories)
            if tuple(numbers.shape) != wanted:
                shape = self._told(wanted)
                raise ContractViolation(f"returned the shape {tuple(numbers.shape)} from `read`; it should be {shape}")
            if numbers.requires_grad:
                raise ContractViolation("returned a tensor that carries gradient from `read`: detach it")
        return numbers

    def _wanted(self, trajectories: Sequence[Trajectory]) -> tuple[int, ...]:
        tokens = self.part.per == "token"
        count = sum(len(each.response) for each in trajectories) if tokens else len(trajectories)
        return (count,) if (width := self.part.width()) is None else (count, width)

    def _told(self, wanted: tuple[int, ...]) -> str:
        letter, of = ("T", "token") if self.part.per == "token" else ("N", "trajectory")
        if len(wanted) == 1:
            return f"({letter},), a number per {of}: {wanted}; a part whose `width` is K gives ({letter}, K)"
        return f"({letter}, K), K = its `width` numbers per {of}: {wanted}"


class OpenFields:
    """The open fields of a run."""

    def __init__(self, fields: Sequence[OpenField] = ()) -> None:
        self._fields = {field.name: field for field in fields}
        self._missing: dict[str, Tensor] = {}

    @property
    def names(self) -> frozenset[str]:
        """The names of the open fields."""
        return frozenset(self._fields)

    def read(
        self,
        names: Collection[str],
        step: int,
        rollouts: RolloutBatch,
        pieces: Sequence[Tensor],
        idle: list[Trajectory],
    ) -> RolloutBatch:
        """The rollout batch with fields, piece by piece.

        Args:
            names: the fields. pieces: (N,) bool each, the trajectories of a micro-batch; of others nothing is asked.
            idle: trajectories of which a divided model is asked only so that this rank takes part.
        """
        asked: dict[str, list[Tensor]] = {name: [] for name in self._fields if name in names}
        for piece in pieces:
            trajectories = rollouts.select(piece).trajectories
            for name, numbers in asked.items():  # all fields of a micro-batch: equal questions make one pass
                numbers.append(self._fields[name].read(step, trajectories))
        for trajectory in idle:
            for name in asked:
                self._fields[name].read(step, [trajectory])
        batch = rollouts.batch
        for name, numbers in asked.items():
            field = self._fields[name]
            batch = _with(batch, field, pieces, numbers or [field.read(step, [])])
            nothing = _without_number(batch, field, pieces).sum()
            self._missing[name] = self._missing[name] + nothing if name in self._missing else nothing
        return replace(rollouts, batch=batch)

    def missing(self) -> dict[str, float]:
        """Of each field that has been read since this was last asked: how many trajectories it has no number for."""
        counts, self._missing = self._missing, {}
        return {name: float(count) for name, count in counts.items()}

    def observers(self) -> list[Any]:
        """The sessions that look at what is sampled."""
        return [field.session for field in self._fields.values() if hasattr(field.session, "observe")]

    def learned(self, step: int, policy: Policy) -> None:
        """Tell the sessions that a rollout batch's updates are made."""
        for field in self._fields.values():
            if hasattr(field.session, "learned"):
                field.session.learned(step, policy)

    def state(self) -> dict[str, dict[str, Any]]:
        """The states of the sessions that have one, by field; all ranks call it."""
        stateful = {name: field.session for name, field in self._fields.items() if hasattr(field.session, "state")}
        return {name: session.state() for name, session in stateful.items()}

    def restore(self, states: Mapping[str, dict[str, Any]]) -> None:
        """Restore what `state` returned. Raises ValueError where it is of other fields."""
        own = {name for name, field in self._fields.items() if hasattr(field.session, "state")}
        if own != set(states):
            raise ValueError(f"the fields with a state are {', '.join(sorted(own)) or 'none'}")
        for name, state in states.items():
            self._fields[name].session.restore(state)


def _with(batch: Batch, field: OpenField, pieces: Sequence[Tensor], numbers: Sequence[Tensor]) -> Batch:
    """The batch with a field; NaN where nothing was asked."""
    tokens = field.part.per == "token"
    rows = len(batch.trajectory) if tokens else batch.size
    whole = torch.full((rows, *numbers[0].shape[1:]), torch.nan, dtype=batch.dtype, device=batch.reward.device)
    asked = torch.zeros(batch.size, dtype=torch.bool, device=batch.reward.device)
    for piece, some in zip(pieces, numbers, strict=False):
        whole[piece[batch.trajectory] if tokens else piece] = some.to(whole)
        asked |= piece
    if tokens:
        return replace(batch, token_fields={**batch.token_fields, field.name: whole})
    if field.part.per == "trajectory":
        return replace(batch, trajectory_fields={**batch.trajectory_fields, field.name: whole})
    of_prompts = whole.new_full((batch.prompts, *whole.shape[1:]), torch.nan)
    of_prompts[batch.prompt[asked]] = whole[asked]  # the rows of a prompt are equal
    return replace(batch, prompt_fields={**batch.prompt_fields, field.name: of_prompts})


def _without_number(batch: Batch, field: OpenField, pieces: Sequence[Tensor]) -> Tensor:
    """(N,) bool: the trajectories that were asked about, and have no number."""
    numbers = batch.field(field.name)
    assert numbers is not None
    nothing = numbers.isnan() if numbers.ndim == 1 else numbers.isnan().any(1)
    rows = torch.zeros(batch.size, dtype=torch.bool, device=nothing.device)
    if field.part.per == "token":
        rows[batch.trajectory[nothing]] = True
    else:
        rows = nothing if field.part.per == "trajectory" else nothing[batch.prompt]
    asked = torch.stack([*pieces, torch.zeros_like(rows)]).any(0)
    return rows & asked


@contextmanager
def open_fields(recipe: Recipe, context: Context) -> Iterator[OpenFields]:
    """The fields that parts of the recipe read, open."""
    with ExitStack() as stack:
        fields = []
        for name, part in recipe.fields_read().items():
            own = replace(context, place=f"fields.{name}")
            session = stack.enter_context(sessions.opened(part, own.place, part.open, own))
            fields.append(OpenField(name, part, session))
        yield OpenFields(fields)
