"""Unusual parts that are right: `upge check` must find nothing wrong with them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from upge import (
    Advantage,
    BatchField,
    Completion,
    Context,
    Data,
    Denominator,
    Engine,
    Mask,
    Problem,
    Reduction,
    Reward,
    Trajectory,
    View,
)
from upge.part import Shaping, Switch


class HugeRange(Mask):
    """Weights from e⁻⁴⁰ to e⁴⁰."""

    def __call__(self, b: View) -> Any:
        return b.ratio**2


class Stepped(Mask):
    """Ratios in tenths."""

    width: float = Field(default=0.1, gt=0, le=1)

    def __call__(self, b: View) -> Any:
        return (b.ratio / self.width).floor().clamp(max=100) * self.width


class Moment(Advantage):
    """The reward over its running mean, which every rank has alike; it reads `truncated` in `advance` alone."""

    needs = frozenset({"reward", "truncated"})

    def initial(self) -> dict[str, torch.Tensor]:
        zero = torch.zeros((), dtype=torch.float64)
        return {"sum": zero, "count": zero}

    def advance(self, b: View) -> dict[str, torch.Tensor]:
        whole = (~b.truncated).to(b.dtype)
        return {"sum": b.state["sum"] + b.total(b.reward * whole), "count": b.state["count"] + b.total(whole)}

    def __call__(self, b: View) -> Any:
        return b.to_tokens(b.reward - (b.state["sum"] / b.state["count"].clamp(min=1)).to(b.dtype))


class Plain(Advantage):
    """The group's mean and deviation as everybody writes them."""

    needs = frozenset({"reward"})
    scope = "group"

    def __call__(self, b: View) -> Any:
        n = b.per_prompt(torch.ones_like(b.reward))
        centred = b.reward - b.to_trajectories(b.per_prompt(b.reward) / n)
        deviation = (b.per_prompt(centred**2) / (n - 1).clamp(min=1)).sqrt()
        return b.to_tokens(centred / (b.to_trajectories(deviation) + 1e-6))


class RootOfTokens(Reduction):
    """One over the root of all tokens on all ranks."""

    def __call__(self, b: View) -> Any:
        return b.total(self.counted(b) * b.length).clamp(min=1).rsqrt()


class Blend(Denominator):
    """Between the policy of the rollouts and the reference."""

    needs = frozenset({"old_logp", "reference_logp"})
    share: float = Field(default=0.5, ge=0, le=1)

    def __call__(self, b: View) -> Any:
        return torch.lerp(b.old_logp, b.reference_logp, self.share)


class Soft(Switch):
    """More for prompts that are half solved."""

    needs = frozenset({"reward"})
    scope = "group"
    term: str

    def terms(self) -> tuple[str, ...]:
        return (self.term,)

    def __call__(self, b: View) -> Any:
        rate = b.per_prompt(b.reward * b.rollout) / b.per_prompt(b.rollout).clamp(min=1)
        return {self.term: torch.exp(-((rate - 0.5) ** 2))}


class Root(Shaping):
    """A little for the root of the length, at the last token."""

    def __call__(self, b: View) -> Any:
        return b.at_last(-0.1 * b.length.sqrt())


class Memo(Reward):
    """Remembers what it has scored, and says the same again."""

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        self.__dict__["_memo"] = {}
        yield self

    def score(self, pairs: Sequence[tuple[Problem, str]]) -> list[float]:
        return [self._memo.setdefault((p.id, t), 1 / (1 + len(t)) + (p.answer in t)) for p, t in pairs]


class Visits(BatchField):
    """Two numbers of each prompt's last visit: its rollouts, and their best reward; NaN before the first."""

    per: ClassVar[Literal["prompt"]] = "prompt"

    def width(self) -> int | None:
        return 2

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        made = Visits()
        made.__dict__["_last"] = {}
        yield made

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> torch.Tensor:
        nothing = [math.nan, math.nan]
        rows = [self._last.get(each.problem.id, nothing) for each in trajectories]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 2)

    def observe(self, step: int, trajectories: Sequence[Trajectory]) -> None:
        for each in trajectories:
            count, best = self._last.get(each.problem.id, [0.0, -1.0])
            self._last[each.problem.id] = [count + 1, max(best, each.reward)]

    def state(self) -> dict[str, Any]:
        return {"last": self._last}

    def restore(self, state: dict[str, Any]) -> None:
        self.__dict__["_last"] = state["last"]


class Cycling(Data):
    """The same few problems, over and over, without a split."""

    size: int = Field(default=3, ge=1, le=8)

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        yield self

    def take(self, step: int, count: int) -> list[Problem]:
        return [Problem(f"{n}", f"{n}?", f"{n}") for i in range(count) for n in [(step * count + i) % self.size]]

    def splits(self) -> Sequence[str]:
        return ()

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        pass


class Hashed(Engine):
    """Random words of no model, without log-probs."""

    reports_logp: ClassVar[bool] = False

    @contextmanager
    def open(self, context: Context) -> Iterator[Any]:
        self.__dict__["_context"] = context
        yield self

    def sample(self, requests: Any, sampling: Any) -> list[Completion]:
        return [self._one(request, sampling) for request in requests]

    def _one(self, request: Any, sampling: Any) -> Completion:
        stop = self._context.policy.stop_ids[0]
        key = (request.key(self._context.seed), request.prompt) if sampling.temperature and sampling.top_k != 1 else ()
        if sampling.top_p < 1:
            key = ()
        digest = hashlib.sha256(repr(key).encode()).digest()
        words = [b % 4 + 4 for b in digest if b % 4 + 4 != stop][: digest[0] % 6]
        tokens = (*words, stop)[: sampling.max_tokens]
        return Completion(tokens, None, tokens[-1] != stop)

    def sync(self, policy: Any) -> None:
        pass


class GroupCovariance(Mask):
    """KL-Cov by prompt: the top share of its tokens' covariances is masked, those without advantage counted in."""

    scope = "group"
    needs = frozenset({"logp"})
    share: float = Field(default=2e-4, gt=0, le=1)

    def __call__(self, b: View) -> Any:
        kept, prompt = torch.ones_like(b.logp), b.prompt[b.trajectory]
        for tokens in ((prompt == p).nonzero()[:, 0] for p in torch.unique(prompt).tolist()):
            centred = [x[tokens] - x[tokens].mean() for x in (b.logp, b.advantage)]
            covariance = centred[0] * centred[1]
            count = max(1, int(self.share * len(tokens)))
            lowest = covariance.sort(descending=True).values[count - 1]
            # Two tokens have equal covariances but for rounding, which is not to choose between them.
            kept[tokens] = (covariance < lowest - 1e-3 * (1 + lowest.abs())).to(b.dtype)
        return kept


RIGHT = [
    GroupCovariance,
    HugeRange,
    Stepped,
    Moment,
    Plain,
    RootOfTokens,
    Blend,
    Soft,
    Root,
    Memo,
    Cycling,
    Visits,
    Hashed,
]
