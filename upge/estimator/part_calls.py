"""Asking one part for its numbers, and holding it to its contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from functools import partial
from math import isnan
from typing import Any

import torch
from torch import Tensor

from upge.estimator.batch import FIELD_KINDS, Batch
from upge.estimator.guards import Guards
from upge.estimator.part_errors import (
    ContractViolation,
    PartError,
    attribute_errors,
    line_of_method,
    returned,
)
from upge.estimator.view import Reduce, View, alone
from upge.part import Advantage, Factor, Part, Selection, State, Stateful, Switch, Weight, carries_state


class PartCaller:
    """Makes the views of one phase, and calls factors on them.

    With `guards`, a NaN in a factor is left to whoever knows whether it meets a weight; without, it raises at once.
    """

    def __init__(
        self,
        batch: Batch,
        step: int,
        *,
        rows: Tensor | None = None,
        active: Tensor | None = None,
        known: Mapping[str, Tensor] | None = None,
        reduce: Reduce | None = alone,
        guards: Guards | None = None,
    ) -> None:
        self.batch, self.step, self.rows, self.active, self.reduce = batch, step, rows, active, reduce
        self.known, self.guards = dict(known or {}), guards
        self.selected: Tensor | None = None
        self._fields = _shown_of(batch)

    def factor(self, part: Factor | Selection, place: str, state: State | None = None) -> Tensor:
        """(T,) the part's numbers; 0 or 1 of a selection."""
        if isinstance(part, Selection):
            return self.selection(part, place, state).to(self.batch.dtype)
        tokens = self.batch.trajectory.shape
        with attribute_errors(part, f"estimator.{place}"):
            result: Tensor = self._called(part, part.__call__, place, state)
            wanted, hint = "a number per token, (T,), or one for all, ()", self._to_tokens(result)
            check(result, tokens, wanted, scalar=True, hint=hint)
            if self.guards is None:
                check_nan(result, self.batch)
        return result.detach().to(self.batch.reward).expand(tokens)

    def selection(self, part: Selection, place: str, state: State | None = None) -> Tensor:
        """(T,) bool: the tokens that a selection leaves."""
        tokens, rows = self.batch.trajectory.shape, self.batch.group.shape
        with attribute_errors(part, f"estimator.{place}"):
            result: Tensor = self._called(part, part.__call__, place, state)
            wanted = "bool, a token's (T,) or a trajectory's (N,)"
            if isinstance(result, Tensor) and result.dtype != torch.bool:
                raise ContractViolation(f"returned {result.dtype}; it should return {wanted}: compare, as in `x > 0`")
            check(result, rows if isinstance(result, Tensor) and result.shape == rows else tokens, wanted)
            of_rows = result.shape == rows and (tokens != rows or self._selects_rows(part, place, state))
        return result[self.batch.trajectory] if of_rows else result

    def _selects_rows(self, part: Selection, place: str, state: State | None) -> bool:
        """Whether a selection gives numbers per trajectory, in a batch that has as many trajectories as tokens."""
        if bool((self.batch.length == 1).all()):
            return False  # the two are the same
        other = PartCaller(self.batch.with_an_empty_row(), self.step, known=dict(self.known))
        for name in {"reward"} & self.known.keys():
            other.known[name] = torch.cat([self.known[name], self.known[name][-1:]])
        other.rows, other.active = (
            None if x is None else torch.cat([x, torch.zeros_like(x[:1])]) for x in (self.rows, self.active)
        )
        result: Tensor = other._called(part, part.__call__, place, state)
        return result.shape == other.batch.group.shape

    def weight(self, part: Weight, place: str, state: State) -> Tensor:
        """() a term's weight."""
        with attribute_errors(part, f"estimator.{place}"):
            result: Tensor = self._called(part, part.__call__, place, state)
            check(result, (), "one number, ()")
        self._flag(
            ~result.isfinite(), lambda: returned(part, place, f"returned {float(result)}; it should be a finite number")
        )
        return result.to(self.batch.reward)

    def coefficients(self, switch: Switch, place: str, state: State) -> dict[str, Tensor]:
        """(G,) a switch's coefficients for each term that it names."""
        with attribute_errors(switch, f"estimator.{place}"):
            result: dict[str, Tensor] = self._called(switch, switch.__call__, place, state)
            if not isinstance(result, dict) or result.keys() != set(switch.terms()):
                answer = f"for {', '.join(map(str, result))}" if isinstance(result, dict) else type(result).__name__
                raise ContractViolation(f"returned {answer or 'nothing'}; it names {', '.join(switch.terms())}")
            wanted = switch.wants(self.step)
            for name, coefficient in result.items():
                hint = self._to_prompts(coefficient)
                check(coefficient, (self.batch.prompts,), "a coefficient per prompt, (G,)", hint=hint)
                self._flag(coefficient.isnan().any(), partial(returned, switch, place, "returned NaN"))
                if name not in wanted and bool(coefficient.any()):
                    given = f"expected 0, got {float(coefficient[coefficient != 0][0]):g}"
                    raise ContractViolation(
                        f"gives '{name}' a coefficient at step {self.step}, when it wants none: {given}"
                    )
        return result

    def _to_tokens(self, result: object) -> str:
        """How numbers of another shape become numbers per token."""
        ways = {
            (self.batch.size,): "b.to_tokens(x) gives each token its trajectory's number",
            (self.batch.prompts,): "b.to_tokens(b.to_trajectories(x)) gives each token its prompt's number",
            (*self.batch.trajectory.shape, 1): "x[:, 0] has a number per token",
        }
        return ways.get(tuple(result.shape), "") if isinstance(result, Tensor) else ""

    def _to_prompts(self, result: object) -> str:
        """How numbers of another shape become numbers per prompt."""
        if not isinstance(result, Tensor):
            return ""
        ways = {
            tuple(self.batch.trajectory.shape): "b.per_prompt(b.per_trajectory(x)) sums over the prompt's tokens",
            (self.batch.size,): "b.per_prompt(x) sums over the prompt's trajectories",
            (): "torch.ones_like(b.per_prompt(b.reward)) * x has it for every prompt",
        }
        return ways.get(tuple(result.shape), "")

    def after(self, part: Stateful, place: str, state: State) -> dict[str, Tensor]:
        """The state that a part leaves for the next rollout batch."""
        before = state.get(place, {})
        if not carries_state(part):
            return dict(before)
        with attribute_errors(part, f"estimator.{place}"):
            result: dict[str, Tensor] = self._called(part, part.advance, place, state)
            check_state(result, "advance")
            if result.keys() != before.keys():
                told = [", ".join(map(str, names)) or "nothing" for names in (result, before)]
                raise ContractViolation(f"returned {told[0]} from `advance`; its state has {told[1]}")
        return result

    def returns(self, part: Advantage, place: str, state: State) -> Tensor | None:
        """(T,) what the advantage would teach a critic, or None."""
        with attribute_errors(part, f"estimator.{place}"):
            result: Tensor | None = self._called(part, part.returns, place, state)
            if result is not None:
                check(result, self.batch.trajectory.shape, "a number per token, (T,)")
        if result is not None:
            taught = result.isnan() if self.rows is None else result.isnan() & self.rows[self.batch.trajectory]
            self._flag(taught.any(), lambda: returned(part, place, about_nan(part, taught, self.batch)))
        return result

    def _flag(self, wrong: Tensor, error: Callable[[], PartError]) -> None:
        """Keep a flag for whoever reads them, or read it at once."""
        guards = self.guards or Guards()
        guards.flag(wrong, error)
        if self.guards is None:
            guards.read()

    def _called(self, part: Part, method: Callable[[View], Any], place: str, state: State | None) -> Any:
        """What a method of the part returns, held to what it owes to everybody else's tensors."""
        view = self.view(part, place, state)
        # Every change in place raises a tensor's version, that of a detached one as well: two reads of an integer.
        shown = [(name, x, x._version) for name, x in self._shown(view) if not x.is_inference()]
        result = method(view)
        for name, x, version in shown:
            if x._version != version:
                where = f"it is not the part's own; make a new tensor ({line_of_method(method)})"
                raise ContractViolation(f"changes b.{name} in place: {where}")
        results = result.values() if isinstance(result, dict) else [result]
        if any(isinstance(x, Tensor) and x.requires_grad for x in results):
            raise ContractViolation(f"returned a tensor that carries gradient: detach it ({line_of_method(method)})")
        return result

    def _shown(self, view: View) -> Iterator[tuple[str, Tensor]]:
        """Every tensor that a part gets to see, with its name."""
        # The batch's own reward lies below the shaped one, so what was computed before can't hide a field.
        yield from self._fields
        yield from self.known.items()
        yield from ((f"state['{name}']", x) for name, x in view.state.items())
        yield from (("rows", view.rows), ("active", view.active))

    def view(self, part: Part, place: str, state: State | None = None, *, kind: type[View] = View) -> View:
        """The batch as this part may see it; of a `kind` that watches, where somebody watches."""
        return kind(
            self.batch,
            part.reads(),
            type(part).__name__,
            step=self.step,
            known=self.known,
            rows=self.rows,
            active=self.active,
            state=(state or {}).get(place),
            reduce=self.reduce,
            place=place,
            selected=self.selected,
            watch=None if self.guards is None else partial(self._watch, part, place),
        )

    def _watch(self, part: Any, place: str, function: str, x: Tensor, where: Tensor | None) -> None:
        """Flag a statistic over all ranks of a NaN: comparisons with it would be silently false."""
        wrong = x.isnan() if where is None else x.isnan() & where
        self._flag(wrong.any(), partial(returned, part, place, f"takes b.{function} of NaN"))


_FIELDS = tuple(field.name for field in fields(Batch))


def _shown_of(batch: Batch) -> list[tuple[str, Tensor]]:
    """Every tensor of a batch, with the name that a part reads it by."""
    found = [(name, x) for name in _FIELDS if isinstance(x := getattr(batch, name), Tensor)]
    return found + [(f"field('{name}')", x) for kind in FIELD_KINDS for name, x in getattr(batch, kind).items()]


def check(
    result: object,
    shape: tuple[int, ...],
    wanted: str,
    *,
    scalar: bool = False,
    hint: str = "",
) -> None:
    """Raise ContractViolation unless the result is a tensor of this shape (or, where allowed, a scalar)."""
    if not isinstance(result, Tensor):
        raise ContractViolation(f"returned {type(result).__name__}; it should return a tensor: {wanted}")
    if tuple(result.shape) != tuple(shape) and not (scalar and result.ndim == 0):
        message = f"returned the shape {tuple(result.shape)}; it should be {wanted}: {tuple(shape)}"
        raise ContractViolation(f"{message}; {hint}" if hint else message)


def check_nan(result: Tensor, batch: Batch) -> None:
    """Raise ContractViolation where a number is NaN."""
    # A sum is NaN where a number is: one pass, and no second one but for infinities of both signs.
    if isnan(float(result.sum())) and bool(result.isnan().any()):
        raise ContractViolation(f"returned NaN{first_token(result.isnan(), batch)}")


def first_token(wrong: Tensor, batch: Batch) -> str:
    """Where the first token is that `wrong`, (T,), marks."""
    return "" if wrong.ndim == 0 else f" at {batch.token(int(wrong.nonzero()[0]))}"


def about_nan(part: Part, wrong: Tensor, batch: Batch) -> str:
    """Where a part returned the first NaN that `wrong`, (T,), marks, and which of a recipe's fields are NaN there."""
    if wrong.ndim == 0:
        return "returned NaN"
    token = int(wrong.nonzero()[0])
    trajectory = int(batch.trajectory[token])
    rows = (
        (batch.token_fields, token),
        (batch.trajectory_fields, trajectory),
        (batch.prompt_fields, int(batch.prompt[trajectory])),
    )
    unknown = [
        name
        for fields, row in rows
        for name, field in fields.items()
        if name in part.reads() and isinstance(field, Tensor) and bool(field[row].isnan().any())
    ]
    why = f": no number is known there of the field {', '.join(unknown)}" if unknown else ""
    return f"returned NaN{first_token(wrong, batch)}{why}"


def check_state(state: object, method: str) -> None:
    """Raise ContractViolation unless it is a dict of tensors by name."""
    if not isinstance(state, dict):
        raise ContractViolation(f"returned {type(state).__name__} from `{method}`; it should return a dict of tensors")
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ContractViolation(
                f"returned {type(value).__name__} for '{name}' from `{method}`; it should be a tensor"
            )


def initial_of(part: Stateful, place: str) -> dict[str, Tensor]:
    """The state of a part before the first rollout batch."""
    if "initial" in type(part).model_fields:  # a parameter of a part of the first edition
        return {}
    with attribute_errors(part, f"estimator.{place}"):
        state = part.initial()
        check_state(state, "initial")
    return state
