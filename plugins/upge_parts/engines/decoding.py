"""A decode loop of our own: each prompt is run once for all its samples, and finished rows make room for waiting ones.

For models whose whole state is a `DynamicCache` of plain layers; others are sampled with transformers' `generate`.
"""

from __future__ import annotations

import inspect
from collections import deque
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationMixin
from transformers.cache_utils import DynamicLayer

from upge import Sampling
from upge_parts.engines.keyed import draw
from upge_parts.engines.responses import Ends, Row
from upge_parts.engines.windows import Windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from upge import Policy

_PREFILL = 8192  # tokens of prompts that are run at once: what their activations may cost
_INPUTS = {"input_ids", "attention_mask", "position_ids", "past_key_values", "use_cache", "logits_to_keep"}


def decodable(model: PreTrainedModel) -> bool:
    """Whether `decode` can sample from a model: its inputs are the usual ones, and its state is keys and values alone.

    State-space models, sliding windows, models of more than text, and those that prepare their inputs in a way of their
    own can't be.
    """
    prepare = getattr(type(model), "prepare_inputs_for_generation", None)
    if (
        prepare is not GenerationMixin.prepare_inputs_for_generation
        or model.config.get_text_config() is not model.config
    ):
        return False
    if not inspect.signature(model.forward).parameters.keys() >= _INPUTS or model.config.is_encoder_decoder:
        return False
    layers = DynamicCache(config=model.config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def decode(policy: Policy, rows: Iterable[Row], sampling: Sampling, *, batch_size: int) -> None:
    """Continue every row until it stops or has `sampling.max_tokens` tokens, at most `batch_size` at once.

    Raises:
        FloatingPointError: the model's logits aren't finite.
    """
    waiting = _groups(rows, batch_size)
    total = sum(map(len, waiting))
    batch = _Batch(policy, sampling, min(batch_size, total))
    with torch.inference_mode():
        while waiting or batch.rows:
            free = batch_size - len(batch.rows)
            # To run prompts costs as much for one as for several, so that it waits until an eighth is free.
            if waiting and (not batch.rows or 8 * free >= batch_size):
                batch.enter(_next(waiting, free))
            batch.step(more=bool(waiting))


def _groups(rows: Iterable[Row], batch_size: int) -> deque[list[Row]]:
    """Rows of one prompt each, at most `batch_size`; the longest first: later ones fit into the columns there are."""
    prompts: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        prompts.setdefault(row.prompt, []).append(row)
    ordered = sorted(prompts.values(), key=lambda group: len(group[0].prompt), reverse=True)
    return deque(group[at : at + batch_size] for group in ordered for at in range(0, len(group), batch_size))


def _next(waiting: deque[list[Row]], free: int) -> list[list[Row]]:
    """The groups that come next, as long as all their rows fit."""
    taken: list[list[Row]] = []
    while waiting and len(waiting[0]) <= free:
        free -= len(waiting[0])
        taken.append(waiting.popleft())
    return taken


class _Batch:
    """The rows that are continued together.

    The cache holds of every row all tokens but its newest, which is the next step's input.
    """

    def __init__(self, policy: Policy, sampling: Sampling, size: int) -> None:
        self.model, self.sampling = policy.model, sampling
        self.pad_id, self.ends = policy.pad_id, Ends(policy, sampling)
        self.rows: list[Row] = []
        self.cache = Windows(len(DynamicCache(config=self.model.config).layers), size, sampling.max_tokens)

    def enter(self, groups: Sequence[Sequence[Row]]) -> None:
        """Run each group's prompt but for its last token, and add the group's rows."""
        if not groups:
            return
        longest = len(groups[0][0].prompt)
        if not self.rows:
            self.cache.begin(longest - 1)
        portion = max(1, _PREFILL // longest)
        for start in range(0, len(groups), portion):
            self._enter(groups[start : start + portion])

    def _enter(self, groups: Sequence[Sequence[Row]]) -> None:
        lengths = [len(group[0].prompt) - 1 for group in groups]
        running = [at for at, length in enumerate(lengths) if length]
        if running:  # the longest come first, so that those without a token to run are the last
            cache = self._prefill([groups[at][0].prompt[:-1] for at in running])
            self.cache.enter(cache, [lengths[at] for at in running], [len(groups[at]) for at in running])
        self.rows += [row for group in groups for row in group]
        self.cache.place.used = len(self.rows)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> DynamicCache:
        """The keys and values of prompts that begin together: padding behind them is in no token's past."""
        width, pad = max(map(len, prompts)), self.pad_id
        tokens = self._tensor([[*prompt, *[pad] * (width - len(prompt))] for prompt in prompts])
        mask = self._tensor([[1] * len(prompt) + [0] * (width - len(prompt)) for prompt in prompts])
        cache = DynamicCache(config=self.model.config)
        positions = torch.arange(width, device=self.model.device).expand(len(prompts), width)
        self._forward(tokens, mask, positions, cache)
        return cache

    def step(self, *, more: bool) -> None:
        """Draw one token of each row; rows that end leave. `more`: others wait for their places."""
        place, lengths = self.cache.place, self._tensor([row.length for row in self.rows])
        place.width = max(row.length for row in self.rows) - 1
        self.cache.grow(keep_rows=more)
        tokens = self._tensor([[row.newest] for row in self.rows])
        width = place.width + 1
        mask = torch.arange(width, device=lengths.device) >= width - lengths[:, None]
        logits = self._forward(tokens, mask, lengths[:, None] - 1, self.cache)[:, -1]
        place.end += 1
        place.width += 1
        noise = torch.stack([row.noise[len(row.tokens)] for row in self.rows]).to(logits.device)
        drawn, logp = draw(logits, noise, self.sampling)
        for row, token, value in zip(self.rows, drawn.tolist(), logp.tolist(), strict=True):
            row.append(token, value, self.ends)
        self._leave()

    def _leave(self) -> None:
        """Take the rows that have ended out; the last ones move into their places."""
        ended = [at for at, row in enumerate(self.rows) if row.stopped or len(row.tokens) == self.sampling.max_tokens]
        left = len(self.rows) - len(ended)
        targets = [at for at in ended if at < left]
        gone = set(ended)
        sources = [at for at in range(left, len(self.rows)) if at not in gone]
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[left:]
        self.cache.place.used = left
        if sources:
            self.cache.move(list(zip(sources, targets, strict=True)), self.model.device)

    def _forward(self, tokens: Tensor, mask: Tensor, positions: Tensor, cache: DynamicCache | Windows) -> Tensor:
        logits: Tensor = self.model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits

    def _tensor(self, values: Sequence[object]) -> Tensor:
        return torch.tensor(values, device=self.model.device)
