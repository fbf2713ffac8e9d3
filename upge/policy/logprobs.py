"""Log-probabilities and entropies of response tokens, and of nothing else.

A model's vocabulary projection is its widest matrix: projecting prompts and padding too can cost more memory than all
else. So the hidden states that predict response tokens are picked out just before the projection, by a hook on it, and
whatever the model does after it (soft-capping, scaling) happens to those rows alone.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Tokens = Sequence[int]


def log_probs(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Tokens, Tokens]],
    temperature: Tensor,
    *,
    entropy: bool = False,
    pad_id: int = 0,
    forward: Callable[..., Any] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """log π(y_t | x, y_<t) of every response token, and H(π(· | x, y_<t)), where π = softmax(logits / temperature).

    Computed in float32, or in float64 where the model's logits are; never above 0; the gradient flows.

    Args:
        model: any transformers causal LM, unwrapped.
        sequences: N pairs (prompt ids x, response ids y); a response may be empty, a prompt may not.
        temperature: (N,), above 0, one for each sequence.
        entropy: whether entropies are wanted; they cost another pass over the logits.
        pad_id: any valid token id: what padding is made of, which nothing ever reads.
        forward: what to call in place of `model` where it is wrapped (data parallel, mixed precision).

    Returns:
        (T,) log-probs and, if asked, (T,) entropies, in nats; the responses lie end to end, in order.

    Raises:
        ValueError: an empty prompt with a response, or a temperature that isn't above 0.
    """
    _check(sequences, temperature)
    batch = collate(sequences, pad_id, model.device)
    if batch.rows.numel() == 0:
        nothing = torch.zeros(0, device=model.device)
        return nothing, nothing if entropy else None
    logits = _tempered(_response_logits(model, batch, forward or model), batch, temperature)
    log_distribution = logits.log_softmax(-1)
    picked = log_distribution.gather(-1, batch.targets[:, None])[:, 0]
    return _at_most_zero(picked), _entropy(log_distribution) if entropy else None


@dataclass(frozen=True)
class Padded:
    """The B of the N sequences that have a response, padded on the right to L columns.

    Attributes:
        tokens, mask: (B, L) ids and 1 where they are not padding; the last response token isn't fed: it predicts none.
        rows: (T,) flat index b·L + l of the position that predicts each response token.
        targets: (T,) the response tokens.
        lengths: (N,) response lengths; they add up to T.
    """

    tokens: Tensor
    mask: Tensor
    rows: Tensor
    targets: Tensor
    lengths: Tensor


def _check(sequences: Sequence[tuple[Tokens, Tokens]], temperature: Tensor) -> None:
    if temperature.shape != (len(sequences),):
        raise ValueError(f"temperature: expected shape ({len(sequences)},), got {tuple(temperature.shape)}")
    if not bool((temperature > 0).all()):
        raise ValueError("temperature: log-probabilities need a temperature above 0; greedy decoding has none")
    if any(response and not prompt for prompt, response in sequences):
        raise ValueError("sequences: an empty prompt: nothing predicts the first response token")


def collate(sequences: Sequence[tuple[Tokens, Tokens]], pad_id: int, device: torch.device) -> Padded:
    """Pairs (prompt ids, response ids) as what a model is fed."""
    # Without a response there is nothing to predict, and perhaps nothing to feed: a row of padding, with no attention.
    answered = [(prompt, response) for prompt, response in sequences if response]
    fed = [[*prompt, *response][:-1] for prompt, response in answered]
    width = max(map(len, fed), default=0)
    rows = [
        index * width + len(prompt) - 1 + offset
        for index, (prompt, response) in enumerate(answered)
        for offset in range(len(response))
    ]
    return Padded(
        tokens=torch.tensor([row + [pad_id] * (width - len(row)) for row in fed], dtype=torch.long, device=device),
        mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in fed], dtype=torch.long, device=device),
        rows=torch.tensor(rows, dtype=torch.long, device=device),
        targets=torch.tensor([t for _, response in answered for t in response], dtype=torch.long, device=device),
        lengths=torch.tensor([len(response) for _, response in sequences], device=device),
    )


def _response_logits(model: PreTrainedModel, batch: Padded, forward: Callable[..., Any]) -> Tensor:
    """(T, V) the logits that predict the response tokens."""
    with _projecting_only(model, batch.rows, batch.tokens.shape):
        logits: Tensor = forward(input_ids=batch.tokens, **understood(model, batch)).logits
    flat = logits.flatten(0, 1)
    # A model that projects in a way of its own never met the hook: its logits are (B, L, V), not (1, T, V). The two
    # look alike only for one sequence with T = L, that is a prompt of one token, where they are the same rows.
    return flat if logits.shape[0] == 1 and flat.shape[0] == len(batch.rows) else flat[batch.rows]


def understood(model: PreTrainedModel, batch: Padded) -> dict[str, Any]:
    """What goes with the token ids into this model's `forward`, as far as its signature has it."""
    positions = torch.arange(batch.tokens.shape[1], device=batch.tokens.device).expand_as(batch.tokens)
    wanted = {"attention_mask": batch.mask, "position_ids": positions, "use_cache": False}
    parameters = inspect.signature(type(model).forward).parameters
    return {name: value for name, value in wanted.items() if name in parameters}


@contextmanager
def _projecting_only(model: PreTrainedModel, rows: Tensor, shape: torch.Size) -> Iterator[None]:
    """While open, the vocabulary projection sees (1, T, H), the given rows of its (B, L, H)."""

    def pick(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        del module
        if not inputs or inputs[0].shape[:-1] != shape:
            return None
        return inputs[0].flatten(0, 1).index_select(0, rows)[None], *inputs[1:]

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(pick) if isinstance(head, nn.Module) else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _tempered(logits: Tensor, batch: Padded, temperature: Tensor) -> Tensor:
    """(T, V) logits / temperature of their sequence, in float32 or better."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if bool((temperature == 1).all()):
        return logits
    per_token = temperature.to(logits).repeat_interleave(batch.lengths)
    return logits / per_token[:, None]


def _at_most_zero(log_prob: Tensor) -> Tensor:
    """Rounding may leave a certain token at +1e-8; the excess goes as a constant, so that the gradient stays."""
    return log_prob - log_prob.detach().clamp(min=0)


def _entropy(log_distribution: Tensor) -> Tensor:
    """(T,) H = −Σ_v p_v ln p_v in nats, with 0·ln 0 = 0 in value and gradient."""
    finite = log_distribution.clamp(min=torch.finfo(log_distribution.dtype).min)
    return -(log_distribution.exp() * finite).sum(-1)
