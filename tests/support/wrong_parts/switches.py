"""Wrong switches. The docstring of each says what is wrong with it."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import Field

from upge import Switch, View

ONE_RANK = {"AboveTheMean", "BehindAnIf", "LastState"}
CORNER = {"NoRollouts", "AtTheEnd", "Forgetful", "Second"}


class Base(Switch):
    """What the wrong ones share, which is right."""

    needs = frozenset({"reward"})
    scope = "group"

    def terms(self) -> tuple[str, ...]:
        return ("explore",)

    def rate(self, b: View) -> torch.Tensor:
        return b.per_prompt(b.reward * b.rollout) / b.per_prompt(b.rollout).clamp(min=1)


class AboveTheMean(Base):
    """Prompts above the mean of this rank's prompts."""

    def __call__(self, b: View) -> Any:
        rate = self.rate(b)
        return {"explore": (rate > rate.sum() / max(1, len(rate))).to(b.dtype)}


class BehindAnIf(Base):
    """A sum over ranks that only those take part in which have a solved prompt."""

    def __call__(self, b: View) -> Any:
        rate = self.rate(b)
        level = b.total(rate) if bool((rate > 0.5).any()) else rate.sum() * 0
        return {"explore": torch.sigmoid(level).expand(rate.shape)}


class LastState(Base):
    """Its state is the rate of this rank's last prompt."""

    def initial(self) -> dict[str, torch.Tensor]:
        return {"rate": torch.zeros(())}

    def advance(self, b: View) -> dict[str, torch.Tensor]:
        rate = self.rate(b)
        return {"rate": rate[-1].float() if len(rate) else b.state["rate"]}

    def __call__(self, b: View) -> Any:
        return {"explore": (self.rate(b) >= b.state["rate"]).to(b.dtype)}


class NoRollouts(Base):
    """A prompt with demonstrations only has no rate: 0/0."""

    def __call__(self, b: View) -> Any:
        return {"explore": b.per_prompt(b.reward * b.rollout) / b.per_prompt(b.rollout)}


class AtTheEnd(Base):
    """It says that it doesn't want the term any more after its phase, and goes on weighing it."""

    steps: int = Field(default=100, ge=0, le=100)

    def wants(self, step: int) -> frozenset[str]:
        return frozenset({"explore"} if step < self.steps else ())

    def __call__(self, b: View) -> Any:
        return {"explore": 1 + self.rate(b)}


class Forgetful(Base):
    """With a share of 1 it says nothing of its term."""

    share: float = Field(default=0.5, ge=0, le=1)

    def __call__(self, b: View) -> Any:
        return {"explore": self.share * self.rate(b)} if self.share < 1 else {}


class PerTrajectory(Base):
    """A coefficient per trajectory, where one per prompt is due."""

    def __call__(self, b: View) -> Any:
        return {"explore": b.reward}


class Neighbours(Base):
    """Prompts in the order in which they stand, and not in that of the view."""

    def __call__(self, b: View) -> Any:
        seen = list(dict.fromkeys(b.prompt.tolist()))
        return {"explore": self.rate(b)[seen] if seen else self.rate(b)}


class Second(Base):
    """The second rollout's score, which a group of one doesn't have; there it is the next prompt's first."""

    def __call__(self, b: View) -> Any:
        scores = b.reward[b.prompt.argsort(stable=True)]
        first = b.per_prompt(torch.ones_like(b.reward)).cumsum(0).long()
        start = torch.cat([first.new_zeros(1), first])[:-1]
        return {"explore": scores[(start + 1).clamp(max=max(len(scores) - 1, 0))] if len(scores) else self.rate(b)}


class Running(Base):
    """The mean of all prompts so far, in their order."""

    def __call__(self, b: View) -> Any:
        rate = self.rate(b)
        return {"explore": rate.cumsum(0) / torch.arange(1, len(rate) + 1, dtype=b.dtype)}
