"""Where a model calls its head, the streaming head answers in its place.

A head whose pieces are known (a linear layer, peft's LoRA on one) is streamed over tokens and vocabulary. Any other (a
quantized one, DoRA) is called for some tokens at a time, and again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from upge.model.head import Factor, Processing, Tiling, streamed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""Gemma, NanoChat and VaultGemma; RecurrentGemma; xLSTM."""
_FACTORS = ("logit_scale", "lm_head_multiplier")
"""Cohere; Falcon-H1."""
_DIVISORS = ("logits_scaling",)
"""Granite."""


def processing(model: PreTrainedModel) -> Processing:
    """The operations on the logits that a model's config declares."""
    config = model.config.get_text_config()
    scale = 1.0
    for name in _FACTORS:
        scale *= _number(config, name) or 1.0
    for name in _DIVISORS:
        scale /= _number(config, name) or 1.0
    caps = [cap for name in _CAPS if (cap := _number(config, name))]
    return Processing(scale, caps[0] if caps else None)


def _number(config: Any, name: str) -> float | None:
    value = getattr(config, name, None)
    return float(value) if isinstance(value, int | float) else None


@dataclass
class StreamedResults:
    """The results of the streamed head; none if the model doesn't call its head."""

    processing: Processing
    results: list[Tensor] = field(default_factory=list)

    def result(self, logits: Tensor) -> Tensor | None:
        """(T, 1 or 2) log-probs and entropies, given what the model returned as its logits."""
        if len(self.results) != 1:
            return None
        (output,) = self.results
        if self.processing == Processing() and logits.dtype == output.dtype and logits.shape == output[None].shape:
            return logits[0]  # through the model's own output, on which wrappers (FSDP2) hang their hooks
        through: Tensor = _Through.apply(output, logits)  # type: ignore[no-untyped-call]
        return through


class _Through(torch.autograd.Function):
    """A tensor as it is, whose backward pass goes through a model's output too, with a gradient of 0.

    Wrappers (ZeRO's, FSDP2's) hang there what gathers the weights that the backward pass reads.
    """

    @staticmethod
    def forward(ctx: Any, streamed: Tensor, output: Tensor) -> Tensor:
        ctx.save_for_backward(output)
        return streamed.view_as(streamed)

    @staticmethod
    def backward(ctx: Any, *incoming: Any) -> Any:
        (output,) = ctx.saved_tensors
        return incoming[0], torch.zeros_like(output)


@contextmanager
def streamed_by(
    model: PreTrainedModel, rows: Tensor, shape: torch.Size, targets: Tensor, temperature: Tensor | None, entropy: bool
) -> Iterator[StreamedResults]:
    """While open, the head answers its (B, L, H) not with logits but with `streamed` of the given rows, (1, T, 1 or 2).

    Args:
        rows: (T,) flat indices b·L + l. shape: (B, L). targets: (T,). temperature: (T,); None: 1.
    """
    head, record = model.get_output_embeddings(), StreamedResults(processing(model))
    if not isinstance(head, nn.Module):
        yield record
        return
    instance_forward, original = vars(head).get("forward"), head.forward

    def forward(*inputs: Any, **named: Any) -> Any:
        if named or len(inputs) != 1 or inputs[0].shape[:-1] != shape:
            return original(*inputs, **named)
        hidden = inputs[0].flatten(0, 1).index_select(0, rows)
        known = pieces(head, hidden) if instance_forward is None else None
        settings = _HeadCall(targets, temperature, record.processing, entropy)
        result = settings.by_tiles(*known) if known else settings.by_tokens(original, hidden, _size(model, head))
        record.results.append(result)
        return result[None]

    head.forward = forward
    try:
        yield record
    finally:
        del head.forward
        if instance_forward is not None:
            head.forward = instance_forward


def pieces(head: nn.Module, hidden: Tensor) -> tuple[list[Factor], Tensor | None] | None:
    """(T, K) features and (V, K) weights whose products add up to a head's logits, and its bias; None: unknown."""
    if _linear(head):
        return [(hidden, head.weight)], head.bias  # type: ignore[list-item, return-value]
    if (type(head).__module__, type(head).__name__) != ("peft.tuners.lora.layer", "Linear"):
        return None
    return _adapted(head, hidden)


def _linear(head: Any) -> bool:
    """A linear layer as torch has it, its weight no quantized or sharded tensor."""
    plain = isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward
    return plain and type(head.weight) in (Tensor, nn.Parameter, FakeTensor) and head.weight.is_floating_point()


def _adapted(head: Any, hidden: Tensor) -> tuple[list[Factor], Tensor | None] | None:
    """W h + b + Σ s·B A h: the adapters' A h are made here, and their B's are factors like W."""
    base = head.base_layer
    if not _linear(base) or head.lora_variant or (head.disable_adapters and head.merged):
        return None
    factors, bias = [(hidden, base.weight)], base.bias
    if head.disable_adapters or head.merged:
        return factors, bias
    for name in head.active_adapters:
        if name in head.lora_A:
            down, up, scale = head.lora_A[name], head.lora_B[name], head.scaling[name]
            features = down(head.lora_dropout[name](hidden.to(down.weight.dtype))) * scale
            factors.append((features, up.weight))
            if up.bias is not None:
                bias = up.bias * scale if bias is None else bias + up.bias * scale
    return factors, bias


def _size(model: PreTrainedModel, head: nn.Module) -> int:
    """How many logits a token has, or about so many: what memory is cut by."""
    return int(getattr(head, "out_features", None) or model.config.get_text_config().vocab_size)


@dataclass(frozen=True)
class _HeadCall:
    targets: Tensor
    temperature: Tensor | None
    processing: Processing
    entropy: bool

    def by_tiles(self, factors: list[Factor], bias: Tensor | None) -> Tensor:
        return streamed(
            factors,
            self.targets,
            bias=bias,
            temperature=self.temperature,
            processing=self.processing,
            entropy=self.entropy,
        )

    def by_tokens(self, head: Callable[[Tensor], Tensor], hidden: Tensor, size: int) -> Tensor:
        """Some tokens at a time, of which the backward pass makes the logits again."""
        step = max(1, Tiling().budget // (8 * 4 * size))  # logits, their logarithms and powers, and gradients of them
        blocks = []
        for start in range(0, hidden.shape[0], step):
            rows = slice(start, start + step)
            blocks.append(checkpoint(self._block, head, hidden[rows], rows, use_reentrant=False))
        return torch.cat(blocks)

    def _block(self, head: Callable[[Tensor], Tensor], hidden: Tensor, rows: slice) -> Tensor:
        logits = head(hidden[None])[0]
        logits = self.processing(logits if logits.dtype == torch.float64 else logits.float())
        if self.temperature is not None:
            logits = logits / self.temperature.to(logits)[rows, None]
        return plain_log_probs(logits, self.targets[rows], entropy=self.entropy)


def plain_log_probs(logits: Tensor, targets: Tensor, *, entropy: bool) -> Tensor:
    """(T, 1) log-probs or, with `entropy`, (T, 2) log-probs and entropies of (T, V) logits, straight from the formula.

    H = −Σ_v p_v ln p_v with 0·ln 0 = 0, in value and gradient.
    """
    log_distribution = logits.log_softmax(-1)
    columns = [log_distribution.gather(-1, targets[:, None])[:, 0]]
    if entropy:
        finite = log_distribution.clamp(min=torch.finfo(log_distribution.dtype).min)
        columns.append(-(log_distribution.exp() * finite).sum(-1))
    return torch.stack(columns, 1)
