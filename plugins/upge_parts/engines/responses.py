"""Responses in the making: what an engine session that samples by keyed noise knows of each."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class Row:
    """A response in the making: its prompt, its (max_tokens,) uniform numbers, and what was drawn so far."""

    prompt: tuple[int, ...]
    noise: Tensor
    tokens: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    stopped: bool = False

    @property
    def prefix(self) -> tuple[int, ...]:
        """What the next token follows."""
        return (*self.prompt, *self.tokens)

    @property
    def length(self) -> int:
        """How many tokens the next one follows."""
        return len(self.prompt) + len(self.tokens)

    @property
    def newest(self) -> int:
        """The token that the next one follows at once."""
        return self.tokens[-1] if self.tokens else self.prompt[-1]

    def append(self, token: int, logp: float, stop_ids: Collection[int]) -> None:
        """Take over one token and its log-probability. Raises FloatingPointError where that is NaN."""
        if logp != logp:
            raise FloatingPointError(
                "the model's logits aren't finite: the policy has diverged, or its dtype overflows"
            )
        self.tokens.append(token)
        self.logp.append(logp)
        self.stopped = token in stop_ids

    def extend(self, tokens: Sequence[int], logp: Sequence[float], stop_ids: Collection[int]) -> None:
        """Take over what was drawn, up to the first stop token; what follows that is of no concern."""
        for token, value in zip(tokens, logp, strict=True):
            if self.stopped:
                return
            self.append(token, value, stop_ids)
