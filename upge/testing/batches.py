"""Ragged synthetic batches: a small `Case` says what a batch looks like, its seed gives the numbers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from upge.estimator.batch import FIELD_KINDS, Batch
from upge.field_names import named_fields
from upge.part import Part
from upge.part_checks import ATTRIBUTES, FILLED, MACHINES, Per

Rewards = Literal["mixed", "right", "wrong", "wild"]
Distance = Literal["none", "equal", "near", "far", "beyond"]
PER_TOKEN = ("logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value")
PER_TRAJECTORY = ("group", "demonstration", "reward", "truncated")


@dataclass(frozen=True)
class Prompt:
    """How many trajectories answer a prompt, and what its rollouts scored: 0/1, all right, all wrong, or eighths."""

    rollouts: int
    demonstrations: int = 0
    rewards: Rewards = "mixed"


@dataclass(frozen=True)
class Case:
    """A reproducible batch: `old` is how far π_old is from π_θ.

    Ratios go to e^±0.35 for near, to e^±3 for far, and beyond the ±20 nats at which they are clamped for beyond.
    Where it is `certain`, half of the trajectories and a quarter of all tokens had probability 1, under every model.
    """

    prompts: tuple[Prompt, ...]
    old: Distance = "near"
    longest: int = 4
    interleaved: bool = False
    seed: int = 0
    shortest: int = 1
    certain: bool = False

    @property
    def batch(self) -> Batch:
        """The batch, made anew at every call, always the same."""
        random = torch.Generator().manual_seed(self.seed)
        group, demonstration, reward = self._trajectories(random)
        size = len(reward)
        length = torch.randint(self.shortest, self.longest + 1, (size,), generator=random)
        tokens = int(length.sum())

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(tokens, generator=random, dtype=torch.float64)

        logp = uniform(-5.0, -0.05)
        spread = {"none": 0.0, "equal": 0.0, "near": 0.35, "far": 3.0, "beyond": 25.0}[self.old]
        old = torch.minimum(logp - uniform(-spread, spread), torch.tensor(-0.01, dtype=torch.float64))
        batch = Batch(
            logp=logp,
            trajectory=torch.repeat_interleave(torch.arange(size), length),
            group=group,
            demonstration=demonstration,
            reward=reward,
            old_logp=None if self.old == "none" else (logp.clone() if self.old == "equal" else old),
            rollout_logp=torch.minimum(old + uniform(-0.05, 0.05), torch.zeros(())),
            reference_logp=uniform(-5.0, -0.05),
            entropy=uniform(0.0, 3.0),
            value=uniform(-1.0, 1.0),
            truncated=torch.rand(size, generator=random) < 0.2,
        )
        return _settled(batch, random) if self.certain else batch

    def _trajectories(self, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        names = (torch.randperm(50, generator=random) * 7 - 100).tolist()  # any integers, out of order
        rows: list[tuple[int, bool, float]] = []
        for prompt, name in zip(self.prompts, names, strict=False):
            rows += [(name, False, score) for score in _scores(prompt, random)]
            rows += [(name, True, 1.0)] * prompt.demonstrations
        order = torch.randperm(len(rows), generator=random).tolist() if self.interleaved else range(len(rows))
        rows = [rows[i] for i in order]
        return (
            torch.tensor([name for name, _, _ in rows], dtype=torch.int64),
            torch.tensor([demonstration for _, demonstration, _ in rows], dtype=torch.bool),
            torch.tensor([score for _, _, score in rows], dtype=torch.float64),
        )


def _settled(batch: Batch, random: torch.Generator) -> Batch:
    """With tokens that nothing else could have stood for: log-probs and entropy are 0."""
    open_rows = torch.rand(batch.size, generator=random) < 0.5
    open_tokens = open_rows[batch.trajectory] & (torch.rand(batch.trajectory.shape, generator=random) < 0.75)
    fields = {name: x for name in PER_TOKEN if name != "value" and (x := getattr(batch, name)) is not None}
    settled: dict[str, Any] = {name: torch.where(open_tokens, x, 0.0) for name, x in fields.items()}
    return replace(batch, **settled)


def _scores(prompt: Prompt, random: torch.Generator) -> list[float]:
    """Multiples of 1/8, so that sums and means are exact whatever the order."""
    if prompt.rewards == "right":
        return [1.0] * prompt.rollouts
    if prompt.rewards == "wrong":
        return [0.0] * prompt.rollouts
    if prompt.rewards == "mixed":
        return torch.randint(0, 2, (prompt.rollouts,), generator=random).double().tolist()
    return (torch.randint(-16, 17, (prompt.rollouts,), generator=random) / 8).tolist()


EMPTY = Case(())
WORDLESS = Case((Prompt(3, 1), Prompt(2)), longest=2, seed=3, shortest=0)
"""Some trajectories have no token at all."""
RICH = Case((Prompt(4, 1, "wild"), Prompt(3, 1, "wrong"), Prompt(3, 0, "right")), "far", 5, interleaved=True, seed=5)
"""Everything happens: a gate that divides, ratios beyond bounds, all fields."""
LONG = Case((Prompt(4, 1, "wild"), Prompt(4, 1, "wild"), Prompt(3, 1)), "far", 1500, seed=11)
"""So many tokens that a share of 2e-4 picks some."""
BEYOND = Case((Prompt(4, 1), Prompt(3, 1, "wild"), Prompt(2)), "beyond", 5, seed=12)
"""Ratios beyond all bounds: e^±20 once they are clamped."""
CROWD = Case(tuple(Prompt(1 + i % 3, i % 2, "wild") for i in range(9)), "near", 4, interleaved=True, seed=13)
"""Many prompts, some with one rollout only."""
CERTAIN = Case((Prompt(4, 1), Prompt(3, 1, "wild")), "near", 5, seed=17, certain=True)
"""Some tokens, and whole trajectories, had probability 1: log-probs and entropies are 0."""
PINNED = (
    Case((Prompt(1),)),  # a group of one
    Case((Prompt(2), Prompt(3, 1)), old="none", interleaved=True),  # strictly on-policy
    Case((Prompt(3, 1, "right"), Prompt(2, 2, "wrong"))),  # groups without signal, above and below the gate
    Case((Prompt(0, 2), Prompt(4, 0, "wrong"))),  # a demonstration without rollouts, a failure without demonstration
    Case((Prompt(6, 1, "wild"), Prompt(2, 1, "wild")), old="far", longest=6, interleaved=True, seed=1),
    Case((Prompt(4, 2), Prompt(4, 1), Prompt(5)), old="far", longest=6, interleaved=True, seed=2),
)


CORNERS = (RICH, LONG, PINNED[0], WORDLESS, CERTAIN, PINNED[3], PINNED[1], BEYOND, CROWD, PINNED[2], EMPTY)
"""What random batches are seldom, the most telling first."""


def seeded(count: int) -> list[Case]:
    """A fixed set of cases for the mutants: the pinned ones, and `count` that look like the drawn ones."""
    kinds: tuple[Rewards, ...] = ("mixed", "wild", "wrong", "right")
    olds: tuple[Distance, ...] = ("near", "far", "equal", "none")
    made = []
    for seed in range(count):
        random = torch.Generator().manual_seed(1000 + seed)
        draw = torch.randint(0, 60, (12,), generator=random).tolist()
        some = tuple(Prompt(1 + draw[i] % 6, draw[i + 4] % 3, kinds[draw[i + 8] % 4]) for i in range(1 + seed % 4))
        made.append(Case(some, olds[seed % 4 if seed % 3 else 0], 1 + seed % 6, bool(seed % 2), seed))
    return [*PINNED, *made]


def fresh(batch: Batch) -> Batch:
    """The same numbers, with leaves for `logp` and `entropy` that collect gradient."""
    assert batch.logp is not None
    assert batch.entropy is not None
    numbers = {"logp": batch.logp, "entropy": batch.entropy}
    leaves: dict[str, Any] = {name: x.detach().clone().requires_grad_() for name, x in numbers.items()}
    return replace(batch, **leaves)


SYNTHETIC: dict[str, tuple[str, ...]] = {
    "token": ("token_a", "token_b"),
    "trajectory": ("trajectory_a", "trajectory_b"),
    "prompt": ("prompt_a", "prompt_b"),
}
"""Names of fields for parameters to hold, by kind."""
_KINDS: dict[str, Per] = {name: per for per, names in SYNTHETIC.items() for name in names}  # type: ignore[misc]


def kinds_of(parts: Iterable[Part]) -> dict[str, Per]:
    """The fields that parts read and that a `Batch` has no attribute for, with their kinds."""
    kinds: dict[str, Per] = {}
    for part in (each for outer in parts for each in (outer, *outer.within().values())):
        kinds |= {name: FILLED[name] for name in part.reads() & FILLED.keys()}
        for named in named_fields(part):
            if named.name not in MACHINES:
                kinds[named.name] = named.per or _KINDS.get(named.name, "token")
    return kinds


def with_fields(batch: Batch, kinds: Mapping[str, Per], width: Mapping[str, int] | None = None) -> Batch:
    """The batch with numbers for the fields that it lacks; always the same for a name and a size.

    Args: kinds: the fields by name. width: K of those with (…, K) numbers.
    """
    counts = {"token": len(batch.trajectory), "trajectory": batch.size, "prompt": batch.prompts}
    given: dict[str, dict[str, Tensor]] = {kind: dict(getattr(batch, kind)) for kind in FIELD_KINDS}
    for name, per in kinds.items():
        if name not in ATTRIBUTES and batch.field(name) is None:
            shape = (counts[per], width[name]) if width and name in width else (counts[per],)
            given[f"{per}_fields"][name] = _numbers_of(name, shape).to(batch.reward)
    filled: dict[str, Any] = dict(given)
    return replace(batch, **filled)


def _numbers_of(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers as the machine fills them, else log-probs in eighths, so that sums are exact."""
    random = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    highest = {"token": 40, "turn": 3, "forced": 2, "staleness": 4}.get(name)
    if highest is not None:
        return torch.randint(0, highest, shape, generator=random).double()
    return torch.randint(-32, 0, shape, generator=random).double() / 8


def permuted(batch: Batch, order: Tensor) -> tuple[Batch, Tensor]:
    """The batch with its trajectories in `order` (N,), and the tokens of the old batch in the new order (T,)."""
    pieces = [torch.nonzero(batch.trajectory == i).flatten() for i in order.tolist()]
    tokens = torch.cat([torch.zeros(0, dtype=torch.int64), *pieces])
    moved: dict[str, Any] = {name: _at(getattr(batch, name), tokens) for name in PER_TOKEN}
    moved |= {name: _at(getattr(batch, name), order) for name in PER_TRAJECTORY}
    moved["key"] = batch.trajectory_key[order]
    moved["token_fields"] = {name: x[tokens] for name, x in batch.token_fields.items()}
    moved["trajectory_fields"] = {name: x[order] for name, x in batch.trajectory_fields.items()}
    moved["prompt_fields"] = batch.prompt_fields
    length = torch.bincount(batch.trajectory, minlength=batch.size)[order]
    return Batch(trajectory=torch.repeat_interleave(torch.arange(batch.size), length), **moved), tokens


def renamed(batch: Batch, group: Tensor) -> Batch:
    """The batch with its prompts called `group` (N,), and their fields in the ascending order of these."""
    called, prompt = torch.unique(group, return_inverse=True)
    old = torch.zeros_like(called)
    old[prompt] = batch.prompt
    return replace(batch, group=group, prompt_fields={name: x[old] for name, x in batch.prompt_fields.items()})


def _at(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return None if tensor is None else tensor.detach()[index]
