"""Tokens by their turn."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor

from upge import Selection, View


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


class Turn(Selection):
    """The tokens of some turns of a response.

        select_t = [the turn of t is one of `which`]        others:  select_t = [it is none of them]

    Turns are counted from 0, and from −1 backwards, the last turn of the trajectory. `first` is 0, `last` is −1. A
    trajectory that has no such turn is left out. A response without an environment is one turn.
    Shapes: turn (T,) → (T,) bool. Source: multi-turn RL, as in arXiv 2402.19446 (turns as the unit of credit).
    """

    needs = frozenset({"turn"})
    scope = "trajectory"

    which: (
        Literal["first", "last"]
        | int
        | Annotated[tuple[int, ...], Field(min_length=1), BeforeValidator(_as_tuple, json_schema_input_type=list[int])]
    )
    """The turns: the first, the last, a number, or a list of numbers."""
    others: bool = False
    """Select all turns but these."""

    def __call__(self, b: View) -> Tensor:
        turn = b.field("turn").long()
        last = torch.zeros_like(b.prompt).scatter_reduce(0, b.trajectory, turn, "amax")
        turns = b.to_tokens(last) + 1
        chosen = torch.zeros_like(turn, dtype=torch.bool)
        for number in self._numbers():
            chosen |= turn == (turns + number if number < 0 else number)
        return ~chosen if self.others else chosen

    def _numbers(self) -> tuple[int, ...]:
        if isinstance(self.which, str):
            return (0,) if self.which == "first" else (-1,)
        return self.which if isinstance(self.which, tuple) else (self.which,)
