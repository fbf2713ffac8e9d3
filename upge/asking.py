"""Asking one part for its numbers, and holding it to its contract."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from upge.batch import Batch, Reduce, View, alone
from upge.parts import Factor, Part, Switch

State = dict[str, dict[str, Tensor]]
"""What stateful parts carry from one rollout batch to the next: place in the estimator → named tensors."""


class Viewer:
    """Makes the views of one phase, and calls factors on them."""

    def __init__(
        self,
        batch: Batch,
        step: int,
        *,
        rows: Tensor | None = None,
        active: Tensor | None = None,
        known: Mapping[str, Tensor] | None = None,
        reduce: Reduce = alone,
    ) -> None:
        self.batch, self.step, self.rows, self.active, self.reduce = batch, step, rows, active, reduce
        self.known = dict(known or {})

    def factor(self, part: Factor, place: str, state: State | None = None) -> Tensor:
        """(T,) the part's numbers."""
        result = part(self.view(part, place, state))
        tokens = self.batch.trajectory.shape
        wanted = "a number per token, (T,), or one for all, ()"
        check(result, tokens, wanted, label_of(part, place), scalar=True)
        return result.detach().to(self.batch.reward).expand(tokens)

    def coefficients(self, switch: Switch, place: str, state: State) -> dict[str, Tensor]:
        """(G,) a switch's coefficients for each term that it names."""
        result, label = switch(self.view(switch, place, state)), label_of(switch, place)
        if not isinstance(result, dict) or result.keys() != set(switch.terms()):
            answer = f"for {', '.join(map(str, result))}" if isinstance(result, dict) else type(result).__name__
            raise PartError(f"{label} returned {answer or 'nothing'}; it names {', '.join(switch.terms())}")
        for coefficient in result.values():
            check(coefficient, (self.batch.prompts,), "a coefficient per prompt, (G,)", label)
        return result

    def view(self, part: Part, place: str, state: State | None = None) -> View:
        """The batch as this part may see it."""
        return View(
            self.batch,
            part.reads(),
            label_of(part, place),
            step=self.step,
            known=self.known,
            rows=self.rows,
            active=self.active,
            state=(state or {}).get(place),
            reduce=self.reduce,
        )


class PartError(RuntimeError):
    """A part did not keep its contract at run time; the message names it and its place in the estimator."""


def check(result: object, shape: tuple[int, ...], wanted: str, label: str, *, scalar: bool = False) -> None:
    """Raise PartError unless the result is a tensor of this shape (or, where allowed, a scalar) without NaN."""
    if not isinstance(result, Tensor):
        raise PartError(f"{label} returned {type(result).__name__}; it should return a tensor: {wanted}")
    if tuple(result.shape) != tuple(shape) and not (scalar and result.ndim == 0):
        raise PartError(f"{label} returned the shape {tuple(result.shape)}; it should be {wanted}: {tuple(shape)}")
    if bool(torch.isnan(result).any()):
        raise PartError(f"{label} returned NaN")


def label_of(part: Part, place: str) -> str:
    """How messages name a part: its class and its place in the estimator."""
    return f"{type(part).__name__} (estimator.{place})"
