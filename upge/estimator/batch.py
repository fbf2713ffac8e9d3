"""What an estimator sees: the `Batch` of tokens, and the `View` of it that a part gets.

Tokens lie flat: N trajectories of G prompts, their T response tokens end to end, without padding that could leak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from upge.suggestions import nearest

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to ±20 before exp, so that a ratio is never infinite."""

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all data-parallel ranks."""


def alone(x: Tensor) -> Tensor:
    """The sum over ranks where there is only one."""
    return x


@dataclass(frozen=True, eq=False)
class Batch:
    """Trajectories, flat: T tokens of N trajectories of G prompts.

    Floating fields are brought to one dtype, that of `logp`, and at least float32. Raises ValueError where shapes,
    dtypes or ids don't fit together.

    Attributes:
        logp: (T,) float: log π_θ of each response token, nats; carries the gradient. None before the forward pass.
        trajectory: (T,) int: which trajectory the token belongs to, 0…N−1, non-decreasing.
        group: (N,) int: which prompt the trajectory answers; any integers.
        demonstration: (N,) bool: from the demonstrator (True), or the policy's own rollout (False).
        reward: (N,) float: the verifier's score, unshaped; demonstrations are scored by the same verifier.
        old_logp: (T,) float: log π_old, nats; None means strictly on-policy: `logp`, detached.
        rollout_logp: (T,) float: as the inference engine reported it, nats.
        reference_logp: (T,) float: a frozen model's, nats.
        entropy: (T,) float: H(π_θ(·|prefix)), nats; carries gradient for terms that push on it.
        value: (T,) float: the critic's value of the state before each token.
        truncated: (N,) bool: cut at the length limit.
    """

    logp: Tensor | None
    trajectory: Tensor
    group: Tensor
    demonstration: Tensor
    reward: Tensor
    old_logp: Tensor | None = None
    rollout_logp: Tensor | None = None
    reference_logp: Tensor | None = None
    entropy: Tensor | None = None
    value: Tensor | None = None
    truncated: Tensor | None = None

    def __post_init__(self) -> None:
        for name in _PER_TOKEN:
            self._check_shape(name, self.trajectory.shape, "(T,), a number per token")
        for name in _PER_TRAJECTORY:
            self._check_shape(name, self.reward.shape, "(N,), a value per trajectory")
        self._check_types()
        self._check_trajectories()
        for name in ("trajectory", "group"):
            object.__setattr__(self, name, getattr(self, name).long())
        dtype = torch.promote_types(torch.float32, (self.reward if self.logp is None else self.logp).dtype)
        for name in (*_PER_TOKEN, "reward"):
            tensor = getattr(self, name)
            if tensor is not None and name != "trajectory":
                object.__setattr__(self, name, tensor.to(dtype))

    @classmethod
    def from_padded(
        cls,
        logp: Tensor,
        mask: Tensor,
        *,
        group: Tensor,
        reward: Tensor,
        demonstration: Tensor | None = None,
        truncated: Tensor | None = None,
        **per_token: Tensor | None,
    ) -> Batch:
        """The batch of padded rows from other training loops; gradient flows back to the padded tensors.

        Args:
            logp: (B, L) float, a row a trajectory, padding anywhere. mask: (B, L): not 0 at response tokens.
            group, reward: (B,), as the batch has them. demonstration: (B,) bool; without it all rows are rollouts.
            truncated: (B,) bool. per_token: `old_logp`, `rollout_logp`, `reference_logp`, `entropy`, `value`, (B, L).

        Raises ValueError where a name or shape doesn't fit; what stands at padding is never read.
        """
        kept, given = mask != 0, {"logp": logp, **per_token}
        for name, x in given.items():
            if name not in _PER_TOKEN:
                raise ValueError(f"Batch has no field '{name}' per token; it has {', '.join(_PER_TOKEN[1:])}")
            if x is not None and (x.shape != mask.shape or x.ndim != 2):
                raise ValueError(f"{name} has shape {tuple(x.shape)}; it should be that of mask: {tuple(mask.shape)}")
        flat: dict[str, Any] = {name: None if x is None else x[kept] for name, x in given.items()}
        if demonstration is None:
            demonstration = torch.zeros_like(reward, dtype=torch.bool)
        rows = kept.nonzero()[:, 0]
        return cls(
            trajectory=rows, group=group, demonstration=demonstration, reward=reward, truncated=truncated, **flat
        )

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of every number in this batch."""
        return self.reward.dtype

    @property
    def size(self) -> int:
        """N, the number of trajectories."""
        return self.reward.shape[0]

    @cached_property
    def prompt(self) -> Tensor:
        """(N,) int: the trajectory's prompt as an index 0…G−1, in ascending order of `group`."""
        index: Tensor = torch.unique(self.group, return_inverse=True)[1]
        return index

    @cached_property
    def prompts(self) -> int:
        """G, the number of prompts."""
        return int(self.prompt.max()) + 1 if self.size else 0

    @cached_property
    def length(self) -> Tensor:
        """(N,) int: the number of tokens of each trajectory."""
        return torch.bincount(self.trajectory, minlength=self.size)

    @cached_property
    def position(self) -> Tensor:
        """(T,) int: the token's place in its trajectory, from 0."""
        first = torch.cumsum(self.length, 0) - self.length
        return torch.arange(self.trajectory.numel(), device=first.device) - first[self.trajectory]

    @cached_property
    def last(self) -> Tensor:
        """(T,) bool: the last tokens of the trajectories."""
        return self.position == self.length[self.trajectory] - 1

    def token(self, index: int) -> str:
        """The name of token `index` in messages: its place, its trajectory's, and its prompt's."""
        row = int(self.trajectory[index])
        kind = "demonstration" if bool(self.demonstration[row]) else "rollout"
        return f"token {int(self.position[index])} of trajectory {row} ({kind}, group {int(self.group[row])})"

    def select(self, rows: Tensor) -> Batch:
        """The batch of the trajectories that `rows` (N,) bool marks, renumbered from 0, in their order."""
        if rows.dtype != torch.bool or rows.shape != self.reward.shape:
            raise ValueError(f"select takes (N,) bool, N = {self.size}; got {rows.dtype} of shape {tuple(rows.shape)}")
        tokens = rows[self.trajectory]
        number = torch.cumsum(rows, 0) - 1
        picked: dict[str, Any] = {name: _pick(getattr(self, name), tokens) for name in _PER_TOKEN}
        picked |= {name: _pick(getattr(self, name), rows) for name in _PER_TRAJECTORY}
        picked["trajectory"] = number[self.trajectory][tokens]
        return replace(self, **picked)

    def _check_shape(self, name: str, shape: torch.Size, wanted: str) -> None:
        tensor = getattr(self, name)
        if tensor is not None and (tensor.shape != shape or len(shape) != 1):
            raise ValueError(f"Batch.{name} has shape {tuple(tensor.shape)}; it should be {wanted}: {tuple(shape)}")

    def _check_types(self) -> None:
        for name, kind in (("demonstration", torch.bool), ("truncated", torch.bool)):
            tensor = getattr(self, name)
            if tensor is not None and tensor.dtype != kind:
                raise ValueError(f"Batch.{name} is {tensor.dtype}; it should be bool")
        for name in ("trajectory", "group"):
            if getattr(self, name).is_floating_point() or getattr(self, name).dtype == torch.bool:
                raise ValueError(f"Batch.{name} is {getattr(self, name).dtype}; it should be integers")

    def _check_trajectories(self) -> None:
        index = self.trajectory
        if index.numel() == 0:
            return
        if bool((index[1:] < index[:-1]).any()):
            raise ValueError("Batch.trajectory decreases; the tokens of each trajectory lie together, in order 0…N−1")
        if int(index[0]) < 0 or int(index[-1]) >= self.size:
            raise ValueError(
                f"Batch.trajectory holds {int(index[0])}…{int(index[-1])}; there are {self.size} trajectories"
            )


_PER_TOKEN = ("trajectory", "logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value")
_PER_TRAJECTORY = ("reward", "group", "demonstration", "truncated")


def _pick(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[index]


def log_ratio(logp: Tensor, denominator: Tensor) -> Tensor:
    """log(π_θ/π_ref), clamped to ±20 nats."""
    return (logp - denominator).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


class View:
    """A batch as one part reads it: its declared fields, the factors computed before it, and segment sums.

    Every tensor is detached, and not to be changed in place.
    `needs` gates the batch's fields: reading another raises AttributeError.
    What was computed before: `advantage`, `ratio`, `mask` (T,), where the slot comes after.

    Attributes:
        step: the index of the rollout batch, from 0.
        rows: (N,) bool: the term's trajectories (those of all terms that share its counts, for a reduction).
        active: (N,) bool: those of `rows` whose coefficient is not 0.
        state: the part's own state, for advantages and switches.
    """

    def __init__(
        self,
        batch: Batch,
        reads: frozenset[str],
        part: str = "a part",
        *,
        step: int = 0,
        known: Mapping[str, Tensor] | None = None,
        rows: Tensor | None = None,
        active: Tensor | None = None,
        state: Mapping[str, Tensor] | None = None,
        reduce: Reduce = alone,
    ) -> None:
        self._batch, self._reads, self._part, self._reduce = batch, reads, part, reduce
        self._known = dict(known or {})
        self.step = step
        self.rows = torch.ones_like(batch.demonstration) if rows is None else rows
        self.active = self.rows if active is None else active
        self.state = dict(state or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or hasattr(type(self), name):
            return object.__getattribute__(self, name)  # raises what the property has raised
        there = [each for each in (*vars(self), *dir(type(self))) if not each.startswith("_")]
        close = nearest(name, there)
        hint = f"did you mean b.{close}?" if close else f"it has {', '.join(sorted(there))}"
        raise AttributeError(f"{self._part} reads b.{name}, which no view has; {hint}")

    # The structure, free to all.

    @property
    def trajectory(self) -> Tensor:
        """(T,) int: the token's trajectory."""
        return self._batch.trajectory

    @property
    def prompt(self) -> Tensor:
        """(N,) int: the trajectory's prompt, 0…G−1."""
        return self._batch.prompt

    @property
    def demonstration(self) -> Tensor:
        """(N,) bool: True where the demonstrator wrote the trajectory."""
        return self._batch.demonstration

    @property
    def rollout(self) -> Tensor:
        """(N,) bool: True where the policy sampled the trajectory."""
        return ~self._batch.demonstration

    @property
    def length(self) -> Tensor:
        """(N,) the number of tokens of each trajectory, as a float."""
        return self._batch.length.to(self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The floating type of every number here."""
        return self._batch.dtype

    # The fields, for those who declared them.

    @property
    def logp(self) -> Tensor:
        """(T,) log π_θ, nats."""
        return self._field("logp")

    @property
    def old_logp(self) -> Tensor:
        """(T,) log π_old, nats; `logp` where the batch is strictly on-policy."""
        return self._field("old_logp" if self._batch.old_logp is not None else "logp", declared="old_logp")

    @property
    def rollout_logp(self) -> Tensor:
        """(T,) the engine's log-probs, nats."""
        return self._field("rollout_logp")

    @property
    def reference_logp(self) -> Tensor:
        """(T,) a frozen model's log-probs, nats."""
        return self._field("reference_logp")

    @property
    def entropy(self) -> Tensor:
        """(T,) H(π_θ(·|prefix)), nats."""
        return self._field("entropy")

    @property
    def value(self) -> Tensor:
        """(T,) the critic's value of the state before each token."""
        return self._field("value")

    @property
    def reward(self) -> Tensor:
        """(N,) the verifier's score; shaped, for advantages (the score plus the sum of the shaping)."""
        return self._field("reward")

    @property
    def truncated(self) -> Tensor:
        """(N,) bool: cut at the length limit."""
        return self._field("truncated")

    # What was computed before.

    @property
    def advantage(self) -> Tensor:
        """(T,) Â."""
        return self._computed("advantage")

    @property
    def ratio(self) -> Tensor:
        """(T,) π_θ/π_ref for the term's own denominator; positive."""
        return self._computed("ratio")

    @property
    def mask(self) -> Tensor:
        """(T,) the product of the masks before this one."""
        return self._computed("mask")

    @property
    def shaping(self) -> Tensor:
        """(T,) what the shapings add to the reward at each token."""
        return self._computed("shaping")

    def ratio_to(self, denominator: str) -> Tensor:
        """(T,) π_θ over the term's own `denominator`, over the `old` policy, or over the `rollout` engine's."""
        return self.ratio if denominator == "denominator" else self.log_ratio_to(denominator).exp()

    def log_ratio_to(self, denominator: str) -> Tensor:
        """(T,) log π_θ − log π of the `old` policy or of the `rollout` engine, nats, clamped to ±20."""
        return log_ratio(self.logp, self.old_logp if denominator == "old" else self.rollout_logp)

    # Segment sums.

    def per_trajectory(self, x: Tensor) -> Tensor:
        """(T,) → (N,): sums over the tokens of each trajectory."""
        return x.new_zeros(self._batch.size).index_add_(0, self.trajectory, x)

    def per_prompt(self, x: Tensor) -> Tensor:
        """(N,) → (G,): sums over the trajectories of each prompt."""
        return torch.zeros(self._batch.prompts, dtype=self.dtype, device=x.device).index_add_(
            0, self.prompt, x.to(self.dtype)
        )

    def to_tokens(self, x: Tensor) -> Tensor:
        """(N,) → (T,): gives each token its trajectory's number."""
        return x[self.trajectory]

    def to_trajectories(self, x: Tensor) -> Tensor:
        """(G,) → (N,): gives each trajectory its prompt's number."""
        return x[self.prompt]

    # Along a trajectory.

    def to_go(self, x: Tensor, decay: float = 1.0) -> Tensor:
        """(T,) → (T,): Σ_{i ≥ t} decay^(i−t) · x_i, from each token to the end of its trajectory."""
        table = x.new_zeros(self._batch.size, int(self._batch.length.max()) if x.numel() else 0)
        table[self.trajectory, self._batch.position] = x
        for column in range(table.shape[1] - 2, -1, -1):
            table[:, column] += decay * table[:, column + 1]
        return table[self.trajectory, self._batch.position]

    def following(self, x: Tensor) -> Tensor:
        """(T,) → (T,): the number of the next token of the trajectory; 0 at its last."""
        return torch.where(self._batch.last, 0, x.roll(-1))

    def at_last(self, x: Tensor) -> Tensor:
        """(N,) → (T,): each trajectory's number at its last token; 0 at the others."""
        return torch.where(self._batch.last, self.to_tokens(x), 0)

    def total(self, x: Tensor) -> Tensor:
        """(): the sum of x over everything in view and over all ranks."""
        return self._reduce(x.to(self.dtype).sum())

    def _field(self, name: str, declared: str | None = None) -> Tensor:
        declared = declared or name
        if declared not in self._reads:
            raise AttributeError(f"{self._part} reads b.{declared} without declaring it: needs = {{'{declared}'}}")
        tensor = self._known.get(name, getattr(self._batch, name))
        if tensor is None:
            raise AttributeError(f"{self._part} reads b.{declared}, which this batch does not have")
        assert isinstance(tensor, Tensor)
        return tensor.detach()

    def _computed(self, name: str) -> Tensor:
        if name not in self._known:
            raise AttributeError(f"{self._part} reads b.{name}, which is not computed yet where it stands")
        return self._known[name]
