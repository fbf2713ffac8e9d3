"""The `View`: a batch as one part reads it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from upge.estimator import noise, order_statistics
from upge.estimator.batch import Batch
from upge.part_checks import ATTRIBUTES, FILLED
from upge.suggestions import nearest

LOG_RATIO_BOUND = 20.0
"""Log-ratios are clamped to ±20 before exp, so that a ratio is never infinite."""

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all data-parallel ranks."""


Watch = Callable[[str, Tensor, Tensor | None], None]
"""Looks at what a statistic is taken of: the statistic's name, the numbers, and where."""


def alone(x: Tensor) -> Tensor:
    """The sum over ranks where there is only one."""
    return x


def log_ratio(logp: Tensor, denominator: Tensor) -> Tensor:
    """log(π_θ/π_ref), clamped to ±20 nats."""
    return (logp - denominator).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)


class View:
    """A batch as one part reads it: its declared fields, the factors computed before it, and segment sums.

    Every tensor is detached, and not to be changed in place.
    `needs` and the parameters that name fields gate the batch's fields: reading another raises AttributeError. `total`,
    `quantile`, `top` and `share` are over all ranks, so every rank must call them alike, never behind an `if` on data.
    A mask, a denominator, a selection or a live advantage that calls them says `scope = "step"`; elsewhere they raise
    RuntimeError.
    What was computed before: `advantage`, `ratio`, `mask` (T,), where the slot comes after.

    Attributes:
        step: the index of the rollout batch, from 0.
        rows: (N,) bool: the term's trajectories (those of all terms that share its counts, for a reduction).
        active: (N,) bool: those of `rows` whose coefficient is not 0.
        state: the part's own state.
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
        reduce: Reduce | None = alone,
        place: str = "",
        selected: Tensor | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._batch, self._reads, self._part, self._reduce = batch, reads, part, reduce
        self._place, self._selected, self._watch = place, selected, watch
        self._known = dict(known or {})
        self.step = step
        self.rows = torch.ones_like(batch.demonstration) if rows is None else rows
        self.active = self.rows if active is None else active
        self.state = dict(state or {})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or hasattr(type(self), name):
            return object.__getattribute__(self, name)  # raises what the property has raised
        if name in FILLED or name in self._reads:
            raise AttributeError(f"{self._part} reads b.{name}; that is b.field('{name}')")
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

    # Noise, the same for any packing, order, rank and resumed run, and in all epochs over a rollout batch.

    @property
    def noise(self) -> Tensor:
        """(T,) uniform in [0, 1): a function of the trajectory's key, the token's position and the part's place."""
        return noise.uniform(self._batch.token_key, self._place, self.dtype)

    @property
    def trajectory_noise(self) -> Tensor:
        """(N,) uniform in [0, 1): a function of the trajectory's key and the part's place."""
        return noise.uniform(noise.mixed(self._batch.trajectory_key), self._place, self.dtype)

    # The fields, for those who declared them.

    @property
    def logp(self) -> Tensor:
        """(T,) log π_θ, nats; before the first update of a rollout batch it is log π_old."""
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
    def score(self) -> Tensor:
        """(N,) the verifier's score, without shaping, in every slot; declared as `reward`."""
        return self._field("reward", before_shaping=True)

    @property
    def shaped_reward(self) -> Tensor:
        """(N,) the score plus the sum of the shaping, in every slot that comes after the shaping; declared as
        `reward`."""
        reward = self._field("reward")
        return reward if "reward" in self._known else self._computed("reward")

    @property
    def truncated(self) -> Tensor:
        """(N,) bool: cut at the length limit."""
        return self._field("truncated")

    def field(self, name: str) -> Tensor:
        """The field of this name: (T,) or (T, K), (N,) or (N, K), and per prompt (G,) or (G, K).

        A recipe names its fields in its block `fields`; a part reads those that its parameters name (`upge.FieldName`).
        Of the machine's fields, `reward` is what `b.reward` is, and so on. `token` (T,) int are the ids, `turn` (T,)
        int the turn of each token, `turn_reward` (T,) the reward of a turn at its last token, `forced` (T,) bool what
        an environment wrote, and `staleness` (N,) int how many rollout batches ago a trajectory was sampled.
        A number that isn't known is NaN.
        """
        if name in ATTRIBUTES:
            own: Tensor = getattr(self, name)
            return own
        if name not in self._reads:
            way = f"needs = {{'{name}'}}" if name in FILLED else "a parameter of the type upge.FieldName that names it"
            raise AttributeError(f"{self._part} reads b.field('{name}') without declaring it: {way}")
        found = self._batch.field(name)
        if found is None:
            raise AttributeError(f"{self._part} reads b.field('{name}'), which this batch does not have")
        return found.detach()

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

    def per_prompt(self, x: Tensor, how: Literal["sum", "max", "min"] = "sum") -> Tensor:
        """(N,) → (G,): the sum, the largest or the smallest number of each prompt's trajectories."""
        zeros = torch.zeros(self._batch.prompts, dtype=self.dtype, device=x.device)
        if how == "sum":
            return zeros.index_add_(0, self.prompt, x.to(self.dtype))
        if how not in ("max", "min"):
            raise ValueError(f"per_prompt(how={how!r}): should be 'sum', 'max' or 'min'")
        return zeros.scatter_reduce_(0, self.prompt, x.to(self.dtype), f"a{how}", include_self=False)

    def rank(self, x: Tensor) -> Tensor:
        """(N,) → (N,) int: the trajectory's rank in its prompt, 0 for the largest number; ties by key."""
        order = torch.argsort(noise.mixed(self._batch.trajectory_key), stable=True)
        for column in (-x.to(self.dtype), self.prompt):
            order = order[torch.argsort(column[order], stable=True)]
        sizes = torch.bincount(self.prompt, minlength=self._batch.prompts)
        first = torch.repeat_interleave(torch.cumsum(sizes, 0) - sizes, sizes)
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(order), device=order.device) - first
        return ranks

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

    # Over everything in view and all ranks.

    def total(self, x: Tensor) -> Tensor:
        """(): the sum of x over everything in view and over all ranks, added in float64."""
        reduce = self._over_ranks("total", x)
        return reduce(x.sum(dtype=torch.float64)).to(self.dtype)

    def quantile(self, x: Tensor, q: float | Tensor, where: Tensor | None = None) -> Tensor:
        """(): the q-quantile, 0 ≤ q ≤ 1, of x (T,), (N,) or (G,) where `where` holds, linear as `torch.quantile`.

        It is exact, over all ranks; 0 of nothing. Without `where` it is over the term's own selected tokens, or over
        the trajectories that have them; for numbers per prompt `where` must be given.
        """
        where = self._where(x, where)
        return order_statistics.quantile(x.to(self.dtype), q, where, self._over_ranks("quantile", x, where))

    def top(self, x: Tensor, count: float | Tensor, where: Tensor | None = None) -> Tensor:
        """Bool like x: the `count` largest of x (T,), (N,) or (G,) over all ranks where `where` holds; ties by key.

        Fewer where there are fewer. `count` is rounded down. `where` is by default as for `quantile`.
        """
        where = self._where(x, where)
        reduce = self._over_ranks("top", x, where)
        return order_statistics.top(x.to(self.dtype), count, where, self._ties(x), reduce)

    def share(self, p: float | Tensor, where: Tensor | None = None) -> Tensor:
        """(): how many a share p of the n tokens is where `where` (T,) holds: max(1, ⌊p·n + 1e-9⌋), 0 of none.

        A `where` of (N,) or (G,) counts trajectories or prompts. It is by default the term's own selected tokens.
        """
        marked = self._selected_tokens if where is None else where
        reduce = self._over_ranks("share")
        count = reduce(marked.sum(dtype=torch.float64))
        some = torch.floor(p * count + 1e-9).clamp(min=1)
        return torch.where(count > 0, some, 0).to(self.dtype)

    def _over_ranks(self, function: str, x: Tensor | None = None, where: Tensor | None = None) -> Reduce:
        if self._reduce is None:
            raise RuntimeError(
                f"b.{function} is over the whole optimizer step and all ranks, and {self._part} sees a micro-batch: "
                'say scope = "step"'
            )
        if self._watch is not None and x is not None:
            self._watch(function, x, where)
        return self._reduce

    @property
    def _selected_tokens(self) -> Tensor:
        """(T,) bool: the tokens of the term's source that no selection leaves out."""
        own = self.to_tokens(self.rows)
        return own if self._selected is None else own & self._selected

    def _where(self, x: Tensor, where: Tensor | None) -> Tensor:
        """Bool like x: what a wide statistic is over."""
        if where is not None:
            return where
        tokens = self._selected_tokens
        if x.shape == tokens.shape:
            return tokens
        if x.shape != self.rows.shape:
            raise ValueError(
                f"x has the shape {tuple(x.shape)}, one number for neither token nor trajectory: give `where`"
            )
        return self.rows if self._selected is None else self.rows & (self.per_trajectory(tokens.long()) > 0)

    def _ties(self, x: Tensor) -> Tensor:
        """Integers that tell tokens, trajectories or prompts apart, whatever the ranks."""
        if x.shape == self.trajectory.shape:
            return self._batch.token_key
        if x.shape == self._batch.group.shape:
            return noise.mixed(self._batch.trajectory_key)
        return noise.mixed(torch.unique(self._batch.group))

    def _field(self, name: str, declared: str | None = None, *, before_shaping: bool = False) -> Tensor:
        declared = declared or name
        if declared not in self._reads:
            raise AttributeError(f"{self._part} reads b.{declared} without declaring it: needs = {{'{declared}'}}")
        tensor = None if before_shaping else self._known.get(name)
        tensor = getattr(self._batch, name) if tensor is None else tensor
        if tensor is None:
            raise AttributeError(f"{self._part} reads b.{declared}, which this batch does not have")
        assert isinstance(tensor, Tensor)
        return tensor.detach()

    def _computed(self, name: str) -> Tensor:
        if name not in self._known:
            raise AttributeError(f"{self._part} reads b.{name}, which is not computed yet where it stands")
        return self._known[name]
