"""The streaming head against the plain formula: forward and backward, from hidden states to their gradient and W's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from upge.bench.timing import Table, Timing, in_turns, machine, seconds
from upge.model.head import streamed
from upge.model.head_hook import plain_log_probs
from upge.plan.fake_model import Held

Way = Callable[[], Any]


class Head:
    """Hidden states (T, H), weights (V, H), targets (T,) and the loss's gradient for each token (T,)."""

    def __init__(self, tokens: int, vocabulary: int, hidden: int, *, entropy: bool = False) -> None:
        random = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(tokens, hidden, generator=random).requires_grad_()
        self.weight = (torch.randn(vocabulary, hidden, generator=random) / hidden**0.5).requires_grad_()
        self.targets = torch.randint(0, vocabulary, (tokens,), generator=random)
        self.coefficients = torch.randn(tokens, 1 + entropy, generator=random)
        self.entropy = entropy

    def streaming(self) -> tuple[Tensor, ...]:
        """The gradients as the policy has them."""
        return self._gradients(streamed([(self.hidden, self.weight)], self.targets, entropy=self.entropy))

    def naive(self) -> tuple[Tensor, ...]:
        """The gradients from logits that are held."""
        return self._gradients(plain_log_probs(self.hidden @ self.weight.T, self.targets, entropy=self.entropy))

    def products(self) -> None:
        """The three products that no way can do without, and nothing else."""
        hidden, weight = self.hidden.detach(), self.weight.detach()
        logits = torch.mm(hidden, weight.T)
        torch.mm(logits, weight)
        torch.mm(logits.T, hidden)

    @property
    def ways(self) -> dict[str, Way]:
        """The compared functions by name."""
        return {"streaming": self.streaming, "naive": self.naive, "products": self.products}

    def _gradients(self, answer: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((answer * self.coefficients).sum(), (self.hidden, self.weight))


def measure(*, tokens: int = 1024, vocabulary: int = 49152, hidden: int = 576, repeats: int = 5) -> Table:
    """Time as a ratio to the plain formula's and to the bare products', and memory: at that size, and scaled."""
    sizes = {
        "as asked": (tokens, vocabulary, False),
        "with entropies": (tokens, vocabulary, True),
        "vocabulary / 4": (tokens, max(1, vocabulary // 4), False),
        "vocabulary × 2": (tokens, 2 * vocabulary, False),
        "tokens / 4": (max(1, tokens // 4), vocabulary, False),
        "tokens × 2": (2 * tokens, vocabulary, False),
    }
    rows, facts = [], {}
    for name, (count, size, entropy) in sizes.items():
        results = _measured(Head(count, size, hidden, entropy=entropy), repeats)
        facts[name] = {"tokens": count, "vocabulary": size, "hidden": hidden, "entropy": entropy, **results}
        rows.append(_row(name, count, size, results))
    columns = ["", "T × V", "streaming, s (least to most)", "÷ naive", "÷ products", "extra MiB", "naive's", "apart"]
    notes = [
        "Forward and backward in float32. Products: the same three matrix products alone, 6·T·V·H operations.",
        "Extra: what is held at most beside hidden states and weights; the weights' gradient is a part of it.",
        "Apart: the largest difference of a gradient from the naive one, of the largest gradient.",
        machine(),
    ]
    return Table(f"The head, {hidden} wide", columns, rows, notes, facts)


def _measured(head: Head, repeats: int) -> dict[str, Any]:
    timings = in_turns(head.ways, repeats=repeats)
    return {
        **seconds(timings),
        "to_naive": timings["streaming"].ratio(timings["naive"]).median,
        "to_products": timings["streaming"].ratio(timings["products"]).median,
        "apart": _apart(head.streaming(), head.naive()),
        **{f"{name}_extra_bytes": _extra(head, head.ways[name]) for name in ("streaming", "naive")},
    }


def _row(name: str, tokens: int, vocabulary: int, results: dict[str, Any]) -> list[str]:
    ratios = [f"{results[key]:.2f}" for key in ("to_naive", "to_products")]
    memory = [f"{results[f'{key}_extra_bytes'] / 2**20:.0f}" for key in ("streaming", "naive")]
    return [
        name,
        f"{tokens} × {vocabulary}",
        f"{Timing(results['streaming']):.2f}",
        *ratios,
        *memory,
        f"{results['apart']:.0e}",
    ]


def _apart(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> float:
    return max(float((mine - other).abs().max() / other.abs().max()) for mine, other in zip(ours, theirs, strict=True))


def _extra(head: Head, way: Way) -> int:
    """Bytes of tensors that are held at once, at most, beside what was given."""
    settled = [head.hidden, head.weight, head.targets, head.coefficients]
    with Held(settled) as held:
        way()
    return int(held.peak)
