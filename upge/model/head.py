"""The streaming head: log-probs and entropies from hidden states, without ever holding the logits.

For logits x = scale · (h Wᵀ + b), soft-capped (c·tanh(x/c)) where the model does so, and z = x/τ:

    log p_y = z_y − ln Σ_v exp z_v                  ∂ log p_y / ∂z_v = 1[v = y] − p_v
    H = ln Σ_v exp z_v − Σ_v p_v z_v                ∂H / ∂z_v = −p_v (ln p_v + H)

Logits exist as tiles, some tokens by some of the vocabulary. The forward pass keeps running sums of them; the backward
pass makes them again, but for those that fit into a fixed budget, and only for tokens whose incoming gradient isn't 0.
The sums over the vocabulary are those of online softmax. Source: Milakov and Gimelshein 2018.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

Factor = tuple[Tensor, Tensor]
"""Features (T, K) and a weight (V, K), whose product F Wᵀ is a share of the logits."""


@dataclass(frozen=True)
class Tiling:
    """How logits are cut. The numbers that come out don't depend on it, but for rounding.

    Attributes:
        rows, columns: a tile's tokens and its part of the vocabulary, at most. Where there are fewer tokens, tiles are
            up to 4 times as wide. Smaller ones fit caches better, but threads wait for each other at each.
        budget: bytes of tiles that the forward pass keeps for the backward pass, which makes all others again.
    """

    rows: int = 1024
    columns: int = 4096
    budget: int = 256 * 2**20

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1 or self.budget < 0:
            raise ValueError(f"tiling: rows and columns are 1 at least and the budget is 0 at least, got {self}")


@dataclass(frozen=True)
class Processing:
    """The model's operations on the logits after the head: a factor `scale`, then the cap `cap`·tanh(x / `cap`)."""

    scale: float = 1.0
    cap: float | None = None

    def __call__(self, logits: Tensor) -> Tensor:
        """Logits of any shape."""
        logits = logits if self.scale == 1 else logits * self.scale
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


def streamed(
    factors: Sequence[Factor],
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: Tensor | None = None,
    processing: Processing = Processing(),
    entropy: bool = False,
    tiling: Tiling = Tiling(),
) -> Tensor:
    """(T, 1) log-probs of the targets or, with `entropy`, (T, 2) log-probs and entropies, in nats.

    The gradient, exact for both, flows into features, weights and bias as far as they want one; there is no second
    derivative. Products are made in the weight's type, or in autocast's; all else in float32, or in float64 where a
    weight is. A log-prob may come out above 0 by rounding.

    Args:
        factors: (features (T, K), weight (V, K)), whose products add up: a head, and adapters on it.
        targets: (T,) token ids below V. bias: (V,); −inf forbids a token, whose share of the entropy is 0·ln 0 = 0.
        temperature: (T,), above 0; None: 1 everywhere. It gets no gradient.
    """
    flat = [tensor for features, weight in factors for tensor in _typed(features, weight)]
    exact = any(tensor.dtype == torch.float64 for tensor in flat)
    kept = tiling.budget if torch.is_grad_enabled() else 0
    settings = _Settings(tiling, kept, processing, entropy, torch.float64 if exact else torch.float32)
    with torch.autocast(targets.device.type, enabled=False):  # the products have their types already
        result: Tensor = _Streamed.apply(settings, targets, temperature, bias, *flat)  # type: ignore[no-untyped-call]
    return result


def _typed(features: Tensor, weight: Tensor) -> Factor:
    """Features in the type of the product; the weight follows chunk by chunk, so that no copy of it is made."""
    kind, dtype = weight.device.type, weight.dtype
    if torch.is_autocast_enabled(kind) and dtype != torch.float64:
        dtype = torch.get_autocast_dtype(kind)
    return features.to(dtype), weight


@dataclass(frozen=True)
class _Settings:
    tiling: Tiling
    budget: int
    processing: Processing
    entropy: bool
    dtype: torch.dtype


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, settings: _Settings, targets: Tensor, temperature: Any, bias: Any, *flat: Tensor) -> Tensor:
        head = _Head(settings, targets, temperature, bias, flat)
        sums = _Sums(targets.shape[0], settings, targets.device)
        tiles: list[Tensor] = []
        room = settings.budget if any(ctx.needs_input_grad) else 0
        for columns in head.columns():
            weights = head.weights(columns)
            for rows in head.rows():
                tile = head.tile(rows, columns, weights)
                keep = tile.nbytes <= room
                if keep:
                    tiles.append(tile)
                # Without a gap, so that a tile is found by its number: what doesn't fit ends it.
                room = room - tile.nbytes if keep else 0
                sums.add(tile, rows, columns, targets[rows], overwrite=not keep)
        result, total = sums.result(bias, targets)
        ctx.settings, ctx.factors = settings, len(flat)
        ctx.given = (temperature is not None, bias is not None)
        ctx.save_for_backward(
            *(tensor for tensor in (temperature, bias) if tensor is not None), *flat, targets, result, total, *tiles
        )
        return result

    @staticmethod
    def backward(ctx: Any, *incoming: Any) -> Any:
        saved = list(ctx.saved_tensors)
        temperature, bias = (saved.pop(0) if present else None for present in ctx.given)
        flat, (targets, result, total, *tiles) = saved[: ctx.factors], saved[ctx.factors :]
        head = _Head(ctx.settings, targets, temperature, bias, flat)
        gradients_wanted = ctx.needs_input_grad[3:]
        return (None, None, None, *_Backward(head, incoming[0], result, total, tiles, gradients_wanted).run())


class _Head:
    """Tiles of z. `temperature` (T, 1) and `bias` (V,) are in the result's type."""

    def __init__(
        self, settings: _Settings, targets: Tensor, temperature: Tensor | None, bias: Tensor | None, flat: Any
    ) -> None:
        self.settings, self.targets = settings, targets
        self.features, self.originals = flat[::2], flat[1::2]
        self.temperature = None if temperature is None else temperature.to(settings.dtype)[:, None]
        # A finite number whose exponential is 0 and whose multiples are finite: so p·z and p·ln p are 0 without a case.
        lowest = -(torch.finfo(settings.dtype).max ** 0.5)
        self.bias = None if bias is None else bias.detach().to(settings.dtype).clamp(min=lowest)

    def columns(self) -> Iterator[slice]:
        """The vocabulary in chunks; where there are no numbers, those that a peak of memory can be in."""
        tiling, tokens = self.settings.tiling, max(1, self.targets.shape[0])
        width = tiling.columns * min(4, max(1, tiling.rows // tokens))
        chunks = _slices(self.originals[0].shape[0], width)
        if not isinstance(self.targets, FakeTensor):
            return chunks
        # Once no more tiles are kept, each chunk holds what the one before it did, and the last may be narrower.
        return islice(chunks, self.settings.budget // (tokens * width * self.settings.dtype.itemsize) + 3)

    def rows(self) -> Iterator[slice]:
        """The tokens in blocks."""
        return _slices(self.targets.shape[0], self.settings.tiling.rows)

    def weights(self, columns: slice) -> list[Tensor]:
        """Rows of the weights, in the types of their products."""
        return [
            weight[columns].to(features.dtype) for features, weight in zip(self.features, self.originals, strict=True)
        ]

    def tile(self, rows: Any, columns: slice, weights: Sequence[Tensor]) -> Tensor:
        """z of some tokens (a slice or indices) and some of the vocabulary."""
        first, *rest = (features[rows] @ weight.T for features, weight in zip(self.features, weights, strict=True))
        tile = first.to(self.settings.dtype)
        for product in rest:
            tile.add_(product)
        if self.bias is not None:
            tile.add_(self.bias[columns])
        tile = self.settings.processing(tile)
        return tile if self.temperature is None else tile.div_(self.temperature[rows])


class _Sums:
    """Running over the vocabulary, for each token: the maximum m, Σ exp(z − m), Σ exp(z − m)(z − m), and z_y."""

    def __init__(self, tokens: int, settings: _Settings, device: torch.device) -> None:
        self.entropy = settings.entropy
        lowest = -(torch.finfo(settings.dtype).max ** 0.5)
        self.highest = torch.full((tokens,), lowest, dtype=settings.dtype, device=device)
        self.total, self.weighted, self.picked = (torch.zeros_like(self.highest) for _ in range(3))

    def add(self, tile: Tensor, rows: slice, columns: slice, targets: Tensor, *, overwrite: bool) -> None:
        """Take in a tile of z; it may be written over."""
        inside, index = _inside(targets, columns)
        self.picked[rows] += torch.where(inside, tile.gather(1, index)[:, 0], 0)
        before = self.highest[rows]
        highest = torch.maximum(before, tile.amax(1))
        fallen = before - highest
        shifted = tile.sub_(highest[:, None]) if overwrite else tile - highest[:, None]
        powers = shifted.exp() if self.entropy else shifted.exp_()
        old = fallen.exp()
        if self.entropy:
            self.weighted[rows] = old * (self.weighted[rows] + self.total[rows] * fallen)
            self.weighted[rows] += shifted.mul_(powers).sum(1)
        self.total[rows] = old * self.total[rows] + powers.sum(1)
        self.highest[rows] = highest

    def result(self, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, Tensor]:
        """(T, 1 or 2) log-probs and entropies, and (T,) ln Σ exp z."""
        spread = self.total.log()
        total = self.highest + spread
        log_prob = self.picked - total
        if bias is not None:
            log_prob = log_prob.masked_fill(bias.detach()[targets] == -torch.inf, -torch.inf)
        columns = [log_prob, spread - self.weighted / self.total] if self.entropy else [log_prob]
        return torch.stack(columns, 1), total


class _Backward:
    """The gradients of bias and factors, from those of log-probs and entropies.

    With g and e the gradients that come in, ∂L/∂z_v = g·1[v = y] − p_v (g + e·(ln p_v + H)).
    """

    def __init__(
        self,
        head: _Head,
        incoming: Tensor,
        result: Tensor,
        total: Tensor,
        tiles: list[Tensor],
        gradients_wanted: Sequence[bool],
    ) -> None:
        self.head, self.total, self.tiles = head, total[:, None], tiles
        self.bias_wanted, self.features_wanted, self.weights_wanted = (
            gradients_wanted[0],
            gradients_wanted[1::2],
            gradients_wanted[2::2],
        )
        self.capped = head.settings.processing.cap
        self.blocks = [_active(incoming, rows) for rows in head.rows()]
        # τ and the scale divide and multiply whole rows, so they go into the rows' coefficients.
        factor = head.settings.processing.scale / (1 if head.temperature is None else head.temperature)
        pushed = incoming * factor
        self.direct = pushed[:, 0]
        entropies = head.settings.entropy and (isinstance(incoming, FakeTensor) or bool(incoming[:, 1].any()))
        self.slope = -pushed[:, 1:] if entropies else None
        self.offset = -pushed[:, :1]
        if entropies:
            self.offset = self.offset - pushed[:, 1:] * (result[:, 1:] - self.total)

    def run(self) -> Iterator[Tensor | None]:
        """The gradients of the bias, then of the first features, the first weight, the second features…"""
        head = self.head
        self.features = [
            torch.zeros(tensor.shape, dtype=head.settings.dtype, device=tensor.device) if gradient_wanted else None
            for tensor, gradient_wanted in zip(head.features, self.features_wanted, strict=True)
        ]
        weights = [
            torch.zeros_like(tensor) if gradient_wanted else None
            for tensor, gradient_wanted in zip(head.originals, self.weights_wanted, strict=True)
        ]
        bias = torch.zeros_like(head.bias) if self.bias_wanted and head.bias is not None else None
        for number, columns in enumerate(head.columns()):
            self._chunk(number, columns, [None if tensor is None else tensor[columns] for tensor in weights], bias)
        yield bias
        for mine, features, weight in zip(self.features, head.features, weights, strict=True):
            yield None if mine is None else mine.to(features.dtype)
            yield weight

    def _chunk(self, number: int, columns: slice, weight_gradients: list[Tensor | None], bias: Tensor | None) -> None:
        weights = self.head.weights(columns)
        for index, rows in enumerate(self.blocks):
            if rows is None:
                continue
            pushed = self._pushed(number * len(self.blocks) + index, rows, columns, weights)
            if bias is not None:
                bias[columns] += pushed.sum(0)
            for features, weight, into, onto in zip(
                self.head.features, weights, self.features, weight_gradients, strict=True
            ):
                cast = pushed.to(weight.dtype)
                if into is not None:
                    _accumulate(into, rows, cast, weight)
                if onto is not None:
                    _accumulate(onto, slice(None), cast.T, features[rows])

    def _pushed(self, number: int, rows: Any, columns: slice, weights: Sequence[Tensor]) -> Tensor:
        """The gradient of a tile of the head's product."""
        kept = number < len(self.tiles)
        tile = self._kept(number, rows) if kept else self.head.tile(rows, columns, weights)
        flattened = None if self.capped is None else self._flattened(tile, rows)
        coefficients = self.offset[rows]
        if self.slope is not None:
            coefficients = torch.addcmul(coefficients, tile, self.slope[rows])
        pushed = (tile - self.total[rows] if kept else tile.sub_(self.total[rows])).exp_().mul_(coefficients)
        inside, index = _inside(self.head.targets[rows], columns)
        pushed.scatter_add_(1, index, torch.where(inside, self.direct[rows], 0)[:, None])
        return pushed if flattened is None else pushed.mul_(flattened)

    def _kept(self, number: int, rows: Any) -> Tensor:
        if isinstance(rows, slice):
            return self.tiles[number]
        return self.tiles[number][rows - number % len(self.blocks) * self.head.settings.tiling.rows]

    def _flattened(self, tile: Tensor, rows: Any) -> Tensor:
        """c·tanh(x/c) has the derivative 1 − tanh²(x/c)."""
        temperature = 1 if self.head.temperature is None else self.head.temperature[rows]
        assert self.capped is not None
        return (tile * (temperature / self.capped)).square_().neg_().add_(1)


def _active(incoming: Tensor, rows: slice) -> Any:
    """Of a block: all of it as a slice, the indices of tokens whose gradient isn't 0, or None where all are 0."""
    if isinstance(incoming, FakeTensor):  # whose values are unknown
        return rows
    active = (incoming[rows] != 0).any(1)
    count = int(active.sum())
    if count == active.shape[0]:
        return rows
    return active.nonzero()[:, 0] + rows.start if count else None


def _accumulate(into: Tensor, rows: Any, left: Tensor, right: Tensor) -> None:
    """into[rows] += left @ right."""
    if isinstance(rows, slice) and into.dtype == left.dtype:
        into[rows].addmm_(left, right)
    elif isinstance(rows, slice):
        into[rows].add_(left @ right)
    else:
        into.index_add_(0, rows, (left @ right).to(into.dtype))


def _inside(targets: Tensor, columns: slice) -> tuple[Tensor, Tensor]:
    """Which targets a chunk holds, and (T, 1) where; 0 for the others."""
    inside = (targets >= columns.start) & (targets < columns.stop)
    return inside, torch.where(inside, targets - columns.start, 0)[:, None]


def _slices(size: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, size)) for start in range(0, size, step))
