"""Responses in the making: what an engine session that samples by keyed noise knows of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from upge import Policy, Sampling


class Ends:
    """What ends a response early: a stop token of the policy's, or the token that completes a stop string.

    The run cuts at stop strings whatever an engine returns; here they only save what would be sampled in vain.
    """

    def __init__(self, policy: Policy, sampling: Sampling) -> None:
        self._ids, self._stop, self._decoder = frozenset(policy.stop_ids), sampling.stop, policy.decoder
        # A character takes up to four tokens, of a byte each. To miss a string costs time alone.
        self._window = 8 + 4 * max(map(len, sampling.stop), default=0)

    def __call__(self, tokens: Sequence[int]) -> bool:
        """Whether the newest of a response's tokens is its last one."""
        if tokens[-1] in self._ids:
            return True
        # Most of the time the newest tokens say that there is none; the first of a text may read otherwise than within.
        near = self._decoder.contains(tokens[-self._window :], self._stop)
        return near and self._decoder.contains(tokens, self._stop)


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

    def append(self, token: int, logp: float, ends: Ends) -> None:
        """Take over one token and its log-probability. Raises FloatingPointError where that is NaN."""
        if logp != logp:
            raise FloatingPointError(
                "the model's logits aren't finite: the policy has diverged, or its dtype overflows"
            )
        self.tokens.append(token)
        self.logp.append(logp)
        self.stopped = ends(self.tokens)

    def extend(self, tokens: Sequence[int], logp: Sequence[float], ends: Ends) -> None:
        """Take over what was drawn, up to where the response ends; what follows that is of no concern."""
        for token, value in zip(tokens, logp, strict=True):
            if self.stopped:
                return
            self.append(token, value, ends)
