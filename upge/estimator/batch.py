"""The `Batch`: what an estimator sees.

Tokens lie flat: N trajectories of G prompts, their T response tokens end to end, without padding that could leak.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from upge.estimator.noise import counted, mixed
from upge.part_checks import ATTRIBUTES

Fields = Mapping[str, Tensor]
"""Fields of the batch by name."""


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
        key: (N,) int64: what a trajectory's noise is a function of. Without one it is made of `group` and the
            trajectory's place within its group, and stays with the trajectory in every `select`.
        token_fields: fields by name, (T,) or (T, K). A number that isn't known is NaN.
        trajectory_fields: fields by name, (N,) or (N, K).
        prompt_fields: fields by name, (G,) or (G, K), the prompts in ascending order of `group`.
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
    key: Tensor | None = None
    token_fields: Fields = field(default_factory=dict)
    trajectory_fields: Fields = field(default_factory=dict)
    prompt_fields: Fields = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in _PER_TOKEN:
            self._check_shape(name, self.trajectory.shape, "(T,), a number per token")
        for name in _PER_TRAJECTORY:
            self._check_shape(name, self.reward.shape, "(N,), a value per trajectory")
        self._check_types()
        self._check_trajectories()
        for name in _INTEGERS:
            if getattr(self, name) is not None:
                object.__setattr__(self, name, getattr(self, name).long())
        dtype = torch.promote_types(torch.float32, (self.reward if self.logp is None else self.logp).dtype)
        for name in (*_PER_TOKEN, "reward"):
            tensor = getattr(self, name)
            if tensor is not None and name != "trajectory":
                object.__setattr__(self, name, tensor.to(dtype))
        for kind in FIELD_KINDS:
            if given := getattr(self, kind):
                self._check_fields(kind, given)
                object.__setattr__(self, kind, {name: _of_dtype(x, dtype) for name, x in given.items()})

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
        key: Tensor | None = None,
        token_fields: Fields | None = None,
        trajectory_fields: Fields | None = None,
        prompt_fields: Fields | None = None,
        **per_token: Tensor | None,
    ) -> Batch:
        """The batch of padded rows from other training loops; gradient flows back to the padded tensors.

        Args:
            logp: (B, L) float, a row a trajectory, padding anywhere. mask: (B, L): not 0 at response tokens.
            group, reward: (B,), as the batch has them. demonstration: (B,) bool; without it all rows are rollouts.
            truncated: (B,) bool. key: (B,) int64.
            per_token: `old_logp`, `rollout_logp`, `reference_logp`, `entropy`, `value`, (B, L).
            token_fields: fields by name, (B, L) or (B, L, K). trajectory_fields: (B,) or (B, K).
            prompt_fields: (G,) or (G, K), in ascending order of `group`.

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
        for name, x in (token_fields or {}).items():
            if x.shape[:2] != mask.shape:
                raise ValueError(f"token_fields['{name}'] has shape {tuple(x.shape)}; it should begin as that of mask")
        rows = kept.nonzero()[:, 0]
        flat |= {"group": group, "demonstration": demonstration, "reward": reward, "truncated": truncated, "key": key}
        flat["token_fields"] = {name: x[kept] for name, x in (token_fields or {}).items()}
        flat |= {"trajectory_fields": trajectory_fields or {}, "prompt_fields": prompt_fields or {}}
        return cls(trajectory=rows, **flat)

    def field(self, name: str) -> Tensor | None:
        """The field of this name, of any kind; None where this batch doesn't have it."""
        if name in ATTRIBUTES:
            found: Tensor | None = getattr(self, name)
            return found
        return next((getattr(self, kind)[name] for kind in FIELD_KINDS if name in getattr(self, kind)), None)

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

    @cached_property
    def trajectory_key(self) -> Tensor:
        """(N,) int64: `key`, or what stands for it."""
        return _default_key(self.group) if self.key is None else self.key

    @cached_property
    def token_key(self) -> Tensor:
        """(T,) int64: the key of each token: that of its trajectory, with the token's position."""
        return counted(self.trajectory_key[self.trajectory], self.position)

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
        picked["key"] = self.trajectory_key[rows]
        picked["trajectory"] = number[self.trajectory][tokens]
        picked["token_fields"] = _each(self.token_fields, lambda x: x[tokens])
        picked["trajectory_fields"] = _each(self.trajectory_fields, lambda x: x[rows])
        if self.prompt_fields:
            left = torch.zeros(self.prompts, dtype=torch.bool, device=rows.device)
            left[self.prompt[rows]] = True
            picked["prompt_fields"] = _each(self.prompt_fields, lambda x: x[left])
        return replace(self, **picked)

    def of_tokens(self, tokens: Tensor) -> Batch:
        """The batch of the tokens that `tokens` (T,) bool marks; all N trajectories stay, some without a token."""
        picked: dict[str, Any] = {name: _pick(getattr(self, name), tokens) for name in _PER_TOKEN}
        picked["token_fields"] = _each(self.token_fields, lambda x: x[tokens])
        part = replace(self, **picked)
        part.__dict__["token_key"] = self.token_key[tokens]  # their noise is that of their places in the whole
        return part

    def with_an_empty_row(self) -> Batch:
        """The batch with one more trajectory, of the last one's prompt and without a token."""
        per_row = {name: x for name in _PER_TRAJECTORY if (x := getattr(self, name)) is not None}
        longer: dict[str, Any] = {name: torch.cat([x, x[-1:]]) for name, x in per_row.items()}
        longer["trajectory_fields"] = _each(self.trajectory_fields, lambda x: torch.cat([x, x[-1:]]))
        return replace(self, **longer)

    def _check_fields(self, kind: str, given: Fields) -> None:
        count = {"token_fields": self.trajectory.shape[0], "trajectory_fields": self.size}.get(kind, self.prompts)
        letter = {"token_fields": "T", "trajectory_fields": "N"}.get(kind, "G")
        for name, x in given.items():
            if name in ATTRIBUTES:
                raise ValueError(f"Batch.{kind}['{name}']: that is Batch.{name}")
            if sum(name in getattr(self, other) for other in FIELD_KINDS) > 1:
                raise ValueError(f"Batch.{kind}['{name}']: another field has this name too")
            if x.ndim not in (1, 2) or x.shape[0] != count:
                wanted = f"({letter},) or ({letter}, K), {letter} = {count}"
                raise ValueError(f"Batch.{kind}['{name}'] has shape {tuple(x.shape)}; it should be {wanted}")

    def _check_shape(self, name: str, shape: torch.Size, wanted: str) -> None:
        tensor = getattr(self, name)
        if tensor is not None and (tensor.shape != shape or len(shape) != 1):
            raise ValueError(f"Batch.{name} has shape {tuple(tensor.shape)}; it should be {wanted}: {tuple(shape)}")

    def _check_types(self) -> None:
        for name, kind in (("demonstration", torch.bool), ("truncated", torch.bool)):
            tensor = getattr(self, name)
            if tensor is not None and tensor.dtype != kind:
                raise ValueError(f"Batch.{name} is {tensor.dtype}; it should be bool")
        for name in _INTEGERS:
            tensor = getattr(self, name)
            if tensor is not None and (tensor.is_floating_point() or tensor.dtype == torch.bool):
                raise ValueError(f"Batch.{name} is {tensor.dtype}; it should be integers")

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


FIELD_KINDS = ("token_fields", "trajectory_fields", "prompt_fields")
_PER_TOKEN = ("trajectory", "logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value")
_PER_TRAJECTORY = ("reward", "group", "demonstration", "truncated", "key")
_INTEGERS = ("trajectory", "group", "key")


def _default_key(group: Tensor) -> Tensor:
    """(N,) a key of each trajectory's group and its place within it."""
    order = torch.argsort(group, stable=True)
    sizes = torch.unique_consecutive(group[order], return_counts=True)[1]
    first = torch.repeat_interleave(torch.cumsum(sizes, 0) - sizes, sizes)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=group.device) - first
    return counted(mixed(group.long()), place)


def _pick(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    return None if tensor is None else tensor[index]


def _each(fields: Fields, picked: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    return {name: picked(x) for name, x in fields.items()}


def _of_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype) if x.is_floating_point() else x
