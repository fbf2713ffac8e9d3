"""A part on its own: what it is called on in the phases of an estimator, whole or in pieces, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from upge.estimator.batch import Batch
from upge.estimator.estimator import Estimator
from upge.estimator.part_calls import PartCaller
from upge.estimator.view import Reduce, alone, log_ratio
from upge.part import (
    Advantage,
    Denominator,
    Factor,
    Mask,
    Part,
    Reduction,
    Selection,
    Stateful,
    Switch,
    Weight,
    is_live,
)
from upge.testing.batches import PER_TOKEN, Case, kinds_of, permuted, renamed, with_fields

STEPS = (0, 0, 1, 2, 3, 8, 64, 1000)
"""The rollout batches at which parts are looked at."""
CONTINUOUS = ("logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value")


@dataclass(frozen=True)
class Scene:
    """What a part is called on: a batch, what was computed before its slot, and its term's rows.

    Attributes:
        known: (T,) or (N,) by name. rows: (N,) bool, its term's. active: (N,) bool, those with a coefficient.
        step: the rollout batch. state: the part's own, as it stands there.
    """

    batch: Batch
    known: dict[str, Tensor]
    rows: Tensor
    active: Tensor
    step: int
    state: dict[str, Tensor]

    def select(self, rows: Tensor) -> Scene:
        """The scene of the trajectories that `rows` (N,) marks."""
        tokens = rows[self.batch.trajectory]
        known = {name: x[rows if name == "reward" else tokens] for name, x in self.known.items()}
        return replace(self, batch=self.batch.select(rows), known=known, rows=self.rows[rows], active=self.active[rows])

    def permuted(self, order: Tensor, group: Tensor) -> tuple[Scene, Tensor]:
        """The trajectories in `order` (N,), their prompts called `group` (N,), and the old tokens in the new order."""
        moved, tokens = permuted(self.batch, order)
        known = {name: x[order if name == "reward" else tokens] for name, x in self.known.items()}
        batch = renamed(moved, group[order])
        return replace(self, batch=batch, known=known, rows=self.rows[order], active=self.active[order]), tokens

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> Scene:
        """The scene with every floating tensor of batch and known changed."""
        batch = {n: x for n in (*PER_TOKEN, "reward") if (x := getattr(self.batch, n)) is not None}
        changed: dict[str, Any] = {name: change(name, x) for name, x in batch.items()}
        return replace(
            self, batch=replace(self.batch, **changed), known={name: change(name, x) for name, x in self.known.items()}
        )

    def lowered(self, by: float, random: torch.Generator) -> Scene:
        """Every other log-prob lower by so many nats, in each field at other tokens, and the ratios that follow."""

        def lower(name: str, x: Tensor) -> Tensor:
            return x - by * torch.randint(0, 2, x.shape, generator=random) if name.endswith("logp") else x

        return self.mapped(lower)._rated()

    def _rated(self) -> Scene:
        """With the ratio that its log-probs have."""
        return replace(self, known=self.known | ({"ratio": _ratio(self.batch)} if "ratio" in self.known else {}))

    def wobbled(self, by: float) -> Scene:
        """Log-probs, entropies, values and what follows from them, all a little larger."""
        return self.mapped(lambda name, x: x * (1 + by) if name in CONTINUOUS else x)._rated()


def batch_for(asked: Part | Estimator, case: Case) -> Batch:
    """The batch of a case, with the fields that a part, or those of an estimator, read by name."""
    parts = asked.parts().values() if isinstance(asked, Estimator) else (asked,)
    kinds = kinds_of(parts)
    return with_fields(case.batch, kinds) if kinds else case.batch


def scene(part: Part, case: Case, seed: int) -> Scene:
    """The scene of a part on a case: an odd seed gives its term all trajectories, an even one the rollouts."""
    batch, random = batch_for(part, case), torch.Generator().manual_seed(case.seed + 1)
    rows = torch.ones_like(batch.demonstration) if seed % 2 or isinstance(part, Switch) else ~batch.demonstration
    on = torch.rand(max(batch.prompts, 1), generator=random) < 0.8
    active = rows if not isinstance(part, Reduction | Mask | Denominator) else rows & on[batch.prompt]
    step = STEPS[seed // 2 % len(STEPS)]
    made = Scene(batch, _known(part, batch, random), rows, active, step, {})
    if not isinstance(part, Stateful):
        return made
    state = part.initial()
    for before in range(min(step, 3)):
        state = after(part, replace(made, step=before, state=state))
    return replace(made, state=state)


def _known(part: Part, batch: Batch, random: torch.Generator) -> dict[str, Tensor]:
    """What is there before a part's slot, in numbers that differ from token to token."""
    if not isinstance(part, Advantage | Denominator | Mask | Selection):
        return {}
    tokens = batch.trajectory.shape
    shaping = torch.randint(-2, 3, tokens, generator=random).to(batch.dtype) / 8
    reward = batch.reward.new_zeros(batch.size).index_add_(0, batch.trajectory, shaping) + batch.reward
    known = {"shaping": shaping, "reward": reward}
    if not isinstance(part, Advantage):
        advantage = batch.value if batch.value is not None else shaping
        learned = torch.rand(batch.size, generator=random) < 0.85  # a trajectory without advantage can be dropped
        known["advantage"] = torch.where(learned[batch.trajectory], advantage, 0)
    if isinstance(part, Mask | Selection):
        levels = torch.tensor([1.0, 1.0, 1.0, 0.5, 0.0], dtype=batch.dtype)
        known |= {"ratio": _ratio(batch), "mask": levels[torch.randint(0, 5, tokens, generator=random)]}
    return known


def _ratio(batch: Batch) -> Tensor:
    assert batch.logp is not None
    return log_ratio(batch.logp, batch.logp if batch.old_logp is None else batch.old_logp).exp()


def weighs(part: Part) -> bool:
    """Whether a part is computed for every θ: in micro-batches, unless it sees the whole step.

    A selection isn't: it is computed over the whole step at least.
    """
    return isinstance(part, Denominator | Mask) or (isinstance(part, Advantage) and is_live(part))


def narrow(part: Part) -> bool:
    """Whether a part is computed in micro-batches, where no sum reaches other ranks."""
    return weighs(part) and part.scope != "step"


def viewer(seen: Scene, reduce: Reduce | None = alone) -> PartCaller:
    """What calls the part on a scene."""
    return PartCaller(seen.batch, seen.step, rows=seen.rows, active=seen.active, known=seen.known, reduce=reduce)


@torch.no_grad()
def numbers(part: Part, seen: Scene, reduce: Reduce = alone) -> dict[str, Tensor]:
    """What a part gives: by term (G,) for a switch, else (T,) under "", and what an advantage teaches a critic.

    A selection gives 1 for what it selects, else 0; a weight one number, which stands for every token.
    """
    alone_in_it = narrow(part) or (isinstance(part, Selection) and part.scope != "step")
    asking, state = viewer(seen, None if alone_in_it else reduce), {part.slot: seen.state}
    if isinstance(part, Switch):
        return asking.coefficients(part, part.slot, state)
    if isinstance(part, Weight):
        return {"": asking.weight(part, part.slot, state).expand(seen.batch.trajectory.shape)}
    assert isinstance(part, Factor | Selection)
    found = {"": asking.factor(part, part.slot, state)}
    returns = asking.returns(part, part.slot, state) if isinstance(part, Advantage) and not weighs(part) else None
    return found if returns is None else found | {"what it teaches a critic": returns}


@torch.no_grad()
def after(part: Stateful, seen: Scene, reduce: Reduce = alone) -> dict[str, Tensor]:
    """The state that a part leaves."""
    return viewer(seen, reduce).after(part, part.slot, {part.slot: seen.state})


def acts(part: Part, seen: Scene) -> bool:
    """Whether a part tells tokens, or prompts, apart: where it gives all of them one number, it shows little."""
    if isinstance(part, Weight):  # it has one number for all
        return True
    return any(x.numel() > 1 and bool((x != x[0]).any()) for x in numbers(part, seen).values())


def pieces(part: Part, seen: Scene, count: int, random: torch.Generator) -> Iterator[Tensor]:
    """(N,) bool for each micro-batch: trajectories, or prompts where the part's scope asks for that."""
    owner = torch.randint(0, count, (max(seen.batch.size, 1),), generator=random)[: seen.batch.size]
    if part.scope == "group":
        owner = torch.randint(0, count, (max(seen.batch.prompts, 1),), generator=random)[seen.batch.prompt]
    yield from (owner == piece for piece in range(count))


def put(whole: dict[str, Any], part: Part, seen: Scene, rows: Tensor, share: dict[str, Tensor]) -> None:
    """Write the numbers of the trajectories that `rows` marks to where they belong in those of the whole."""
    where = torch.unique(seen.batch.prompt[rows]) if isinstance(part, Switch) else rows[seen.batch.trajectory]
    for name, x in share.items():
        whole[name][where] = x
