"""Log-probabilities and entropies of response tokens, and of nothing else.

A model's vocabulary projection is its widest matrix: its logits can take more memory than all else. So the hidden
states that predict response tokens are picked out just before it, and its logits are streamed: see `upge.model.head`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from upge.model import prefix_sharing as sharing_rows
from upge.model import self_check
from upge.model.head_hook import plain_log_probs, processing, streamed_by
from upge.model.padding import Padded, PrefixSharing, Tokens, collate, understood
from upge.model.self_check import Proof

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def log_probs(
    model: PreTrainedModel,
    sequences: Sequence[tuple[Tokens, Tokens]],
    temperature: Tensor,
    *,
    entropy: bool = False,
    pad_id: int = 0,
    forward: Callable[..., Any] | None = None,
    streaming: bool = True,
    sharing: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """log π(y_t | x, y_<t) of every response token, and H(π(· | x, y_<t)), where π = softmax(logits / temperature).

    Computed in float32, or in float64 where the model's logits are; never above 0; the gradient flows.

    Args:
        model: any transformers causal LM, unwrapped.
        sequences: N pairs (prompt ids x, response ids y); a response may be empty, a prompt may not.
        temperature: (N,), above 0, one for each sequence.
        entropy: whether entropies are wanted; they cost a little more.
        pad_id: any valid token id: what padding is made of, which nothing ever reads.
        forward: what to call in place of `model` where it is wrapped (data parallel, mixed precision).
        streaming: whether logits are made tile by tile, and never held; False: all at once, by the plain formula. Where
            the two differ on a few made-up tokens, the model does to its logits what its config doesn't tell: then the
            formula is used, with a warning.

        sharing: whether neighbours with one prompt may run it once for all of them; see `upge.model.padding.collate`.

    Returns:
        (T,) log-probs and, with `entropy`, (T,) entropies, in nats; the responses follow one another, in order.

    Raises:
        ValueError: an empty prompt with a response, or a temperature that isn't above 0.
    """
    _check(sequences, temperature)
    batch = collate(sequences, pad_id, model.device, reach=reach(model) if sharing else None)
    if batch.rows.numel() == 0:
        nothing = torch.zeros(0, device=model.device)
        return nothing, nothing if entropy else None
    heat = _per_token(batch, temperature)
    way = _streamed if streaming and _streams(model) else _whole
    result = way(model, batch, heat, forward or model, entropy)
    return _at_most_zero(result[:, 0]), result[:, 1] if entropy else None


def reach(model: PreTrainedModel) -> PrefixSharing | None:
    """How far a row that several responses share may go in this model; None: each has its own. See `layout`."""
    return sharing_rows.reach(model, lambda batch: _whole(model, batch, None, model, False)[:, 0])


def _check(sequences: Sequence[tuple[Tokens, Tokens]], temperature: Tensor) -> None:
    if temperature.shape != (len(sequences),):
        raise ValueError(f"temperature: expected shape ({len(sequences)},), got {tuple(temperature.shape)}")
    if not bool((temperature > 0).all()):
        raise ValueError("temperature: log-probabilities need a temperature above 0; greedy decoding has none")
    if any(response and not prompt for prompt, response in sequences):
        raise ValueError("sequences: an empty prompt: nothing predicts the first response token")


def _per_token(batch: Padded, temperature: Tensor) -> Tensor | None:
    """(T,) temperatures; None where all are 1."""
    if bool((temperature == 1).all()):
        return None
    return temperature.to(batch.rows.device).repeat_interleave(batch.lengths)


def _streamed(
    model: PreTrainedModel, batch: Padded, heat: Tensor | None, forward: Callable[..., Any], entropy: bool
) -> Tensor:
    """(T, 1 or 2) log-probs and entropies; the logits are never whole."""
    with streamed_by(model, batch.rows, batch.tokens.shape, batch.targets, heat, entropy) as record:
        logits: Tensor = forward(input_ids=batch.tokens, **understood(model, batch)).logits
    result = record.result(logits)
    if result is not None:
        return result
    # The model projects in a way of its own, without the head: its logits are (B, L, V).
    return plain_log_probs(_tempered(logits.flatten(0, 1)[batch.rows], heat), batch.targets, entropy=entropy)


def _whole(
    model: PreTrainedModel, batch: Padded, heat: Tensor | None, forward: Callable[..., Any], entropy: bool
) -> Tensor:
    """The same from logits that are held, of the response tokens alone."""
    return plain_log_probs(_tempered(_response_logits(model, batch, forward), heat), batch.targets, entropy=entropy)


_STREAMS = Proof(
    "{model} {fault}: log-probs are computed from whole logits", failing="fails where its logits are streamed"
)


def _streams(model: PreTrainedModel) -> bool:
    """Whether a model's streamed log-probs are those of its own logits."""
    if any(isinstance(parameter, FakeTensor) for parameter in model.parameters()):
        return True  # without numbers there is nothing to compare
    kind = (type(model.get_output_embeddings()), processing(model))
    return _STREAMS.holds(model, kind, partial(_fault, model), stacklevel=4)


def _fault(model: PreTrainedModel) -> str | None:
    """The reason why this model's logits can't be streamed; None if they can."""
    few = collate(self_check.sequences(model), 0, model.device)
    logits = _response_logits(model, few, model)
    plain = plain_log_probs(_tempered(logits, None), few.targets, entropy=True)
    ours = _streamed(model, few, None, model, True)
    # 16 bits round a logit of 30 by as much. Divided models may compute in them, whatever their parameters are.
    tolerance = 0.1 if min(logits.itemsize, self_check.precision(model)) < 4 else 1e-3
    agree = torch.allclose(ours, plain, rtol=tolerance / 10, atol=tolerance, equal_nan=True)
    return None if agree else "changes its logits in a way that isn't in its config"


def _response_logits(model: PreTrainedModel, batch: Padded, forward: Callable[..., Any]) -> Tensor:
    """(T, V) the logits that predict the response tokens."""
    with _projecting_only(model, batch.rows, batch.tokens.shape) as picked:
        logits: Tensor = forward(input_ids=batch.tokens, **understood(model, batch)).logits
    flat = logits.flatten(0, 1)
    # A model that projects in a way of its own never met the hook: its logits are (B, L, V), not (1, T, V).
    return flat if picked else flat[batch.rows]


@contextmanager
def _projecting_only(model: PreTrainedModel, rows: Tensor, shape: torch.Size) -> Iterator[list[bool]]:
    """While open, the vocabulary projection sees (1, T, H), the given rows of its (B, L, H); then the list fills."""
    picked: list[bool] = []

    def pick(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        del module
        if not inputs or inputs[0].shape[:-1] != shape:
            return None
        picked.append(True)
        return inputs[0].flatten(0, 1).index_select(0, rows)[None], *inputs[1:]

    head = model.get_output_embeddings()
    handle = head.register_forward_pre_hook(pick) if isinstance(head, nn.Module) else None
    try:
        yield picked
    finally:
        if handle is not None:
            handle.remove()


def _tempered(logits: Tensor, heat: Tensor | None) -> Tensor:
    """(T, V) logits / temperature, in float32 or better."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if heat is None else logits / heat.to(logits)[:, None]


def _at_most_zero(log_prob: Tensor) -> Tensor:
    """Rounding may leave a certain token at +1e-8; the excess goes as a constant, so that the gradient stays."""
    return log_prob - log_prob.detach().clamp(min=0)
