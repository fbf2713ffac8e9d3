"""Sampling by keyed noise: one uniform number a token, made from (request, position) and not from a stream."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad
from transformers import LogitsProcessor

from upge import Sampling

_LARGEST = 1 << 22  # scores drawn from at once: what float64 copies of them may cost (32 MB each)
_BLOCK = 128  # tokens


def uniforms(keys: Sequence[int], length: int) -> Tensor:
    """(N, length) numbers in [0, 1), float64: `[i, t]` depends on 64-bit key i and position t alone.

    They are multiples of 2⁻⁵², so that u·total is always below `total`, whatever the rounding.
    """
    with np.errstate(over="ignore"):
        steps = np.arange(1, length + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = _mix(np.array(keys, dtype=np.uint64)[:, None] + steps)
    return torch.from_numpy((mixed >> np.uint64(12)).astype(np.float64) * 2.0**-52)


def _mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014): every bit depends on every bit of the state."""
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return state ^ (state >> np.uint64(31))


class KeyedDraw(LogitsProcessor):
    """Draws each row's next token, keeps it and its log-probability, and leaves it the only choice of greedy decoding.

    The token is the first whose cumulative probability exceeds the row's uniform number, under
    softmax(logits / temperature) in float64, cut to `top_k` and `top_p` and renormalized. The log-probability is of
    that distribution: 0 for greedy decoding, and NaN where the logits are not finite.

    Args:
        noise: (N, max_tokens) uniform numbers, on the model's device.
        width: how many columns the padded prompts have; what comes after them are response tokens.
        sampling: temperature and cuts.
    """

    def __init__(self, noise: Tensor, width: int, sampling: Sampling) -> None:
        self.noise = noise
        self.width = width
        self.sampling = sampling
        self.tokens: list[Tensor] = []
        self.logp: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores (N, V), changed in place: transformers hands over a copy."""
        tokens, logp = draw(scores, self.noise[:, input_ids.shape[1] - self.width], self.sampling)
        self.tokens.append(tokens)
        self.logp.append(logp)
        return scores.zero_().scatter_(1, tokens[:, None], 1.0)

    def record(self) -> tuple[list[list[int]], list[list[float]]]:
        """Of each row the tokens drawn and their log-probabilities in nats, those after its stop token included."""
        return torch.stack(self.tokens, 1).tolist(), torch.stack(self.logp, 1).tolist()


def draw(scores: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Tokens (N,) and their log-probabilities (N,), float64, from logits (N, V) and uniform numbers (N,).

    The token is the first whose cumulative probability exceeds the row's uniform number, under
    softmax(logits / temperature), cut to `top_k` and `top_p` and renormalized. The log-probability is of that
    distribution: 0 for greedy decoding, and NaN where the logits are not finite.
    """
    rows = max(1, _LARGEST // scores.shape[1])
    drawn = [_draw(scores[at : at + rows], noise[at : at + rows], sampling) for at in range(0, len(scores), rows)]
    tokens, logp = (torch.cat(parts) for parts in zip(*drawn, strict=True))
    return tokens, logp


def _draw(scores: Tensor, noise: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    if sampling.temperature == 0:
        top, tokens = scores.max(-1)
        return tokens, top.double() * 0.0
    scores = _likeliest(scores, sampling.top_k)
    if sampling.top_p >= 1 and scores.shape[1] > _BLOCK * _BLOCK // 4:
        return _draw_in_blocks(scores, noise, sampling.temperature)
    probability = torch.softmax(scores.double() / sampling.temperature, -1)
    cumulative = _nucleus(probability, sampling.top_p).cumsum(-1)
    total = cumulative[:, -1]
    tokens = torch.searchsorted(cumulative, (noise * total)[:, None], right=True)[:, 0].clamp(max=scores.shape[1] - 1)
    return tokens, (probability.gather(1, tokens[:, None])[:, 0] / total).log()


def _draw_in_blocks(scores: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """As `_draw`, for large vocabularies: first a block of tokens is found, then the token in it.

    Weights exp((logit − highest) / temperature) and each block's sum are of the logits' type, float32 at least; the
    cumulative sums, over blocks and within the block found, are float64.
    """
    scores = scores if scores.dtype == torch.float64 else scores.float()
    shifted = (scores - scores.max(-1, keepdim=True).values) / temperature
    weights = pad(shifted.exp(), (0, -scores.shape[1] % _BLOCK)).unflatten(1, (-1, _BLOCK))
    blocks = weights.sum(-1).double().cumsum(-1)
    total = blocks[:, -1]
    block, before = _first_beyond(blocks, noise * total)
    within = weights[torch.arange(len(scores), device=scores.device), block].double().cumsum(-1)
    token, _ = _first_beyond(within, torch.minimum(noise * total - before, within[:, -1] * (1 - 2.0**-52)))
    tokens = (block * _BLOCK + token).clamp(max=scores.shape[1] - 1)
    return tokens, (shifted.gather(1, tokens[:, None])[:, 0].double() - total.log()).clamp(max=0)


def _first_beyond(cumulative: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The index of each row's first cumulative sum above its target, and the sum before it."""
    index = torch.searchsorted(cumulative, target[:, None], right=True).clamp(max=cumulative.shape[1] - 1)
    before = cumulative.gather(1, (index - 1).clamp(min=0)).masked_fill(index == 0, 0.0)
    return index[:, 0], before[:, 0]


def _likeliest(scores: Tensor, count: int) -> Tensor:
    """Scores below the `count` highest of their row become −∞; ties with the last of them stay."""
    if not 0 < count < scores.shape[1]:
        return scores
    return scores.masked_fill(scores < scores.topk(count).values[:, -1:], -torch.inf)


def _nucleus(probability: Tensor, share: float) -> Tensor:
    """Probabilities outside the smallest set of likeliest tokens that holds `share` of the whole become 0."""
    if share >= 1:
        return probability
    ordered, order = probability.sort(stable=True, dim=-1, descending=True)
    before = ordered.cumsum(-1) - ordered
    return probability.masked_fill((before >= share).scatter(1, order, before >= share), 0.0)
