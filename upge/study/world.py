"""A world small enough to list: prompts, every sequence that may answer them, a verifier and a demonstrator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import torch
from torch import Tensor

STOP = 0
"""The token that ends a sequence."""


@dataclass(frozen=True)
class World:
    """Prompts x, and all sequences y over `vocabulary` tokens that end with token 0 or are `length` tokens long.

    To each prompt two sequences are right, and the demonstrator shows the first of them three times out of four.

    Attributes:
        success: (G,) for each prompt the share of right answers that the policy starts with, in (0, 1).
        vocabulary, length: V tokens, the stop token among them, and the longest sequence.
        seed: of the right answers, and of the policy's start.
    """

    success: tuple[float, ...] = (0.02, 0.1, 0.3, 0.8)
    vocabulary: int = 3
    length: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.success or not all(0 < share < 1 for share in self.success):
            raise ValueError("success rates lie between 0 and 1, both excluded")
        if self.vocabulary < 2 or self.length < 1 or self.vocabulary**self.length > 4096:
            raise ValueError("a vocabulary of 2 tokens or more, and at most 4096 sequences: V^length")

    @property
    def prompts(self) -> int:
        """G."""
        return len(self.success)

    @cached_property
    def sequences(self) -> tuple[tuple[int, ...], ...]:
        """All S sequences, the shortest first."""
        return tuple(self._sequences())

    def _sequences(self) -> Iterator[tuple[int, ...]]:
        going = range(1, self.vocabulary)
        for length in range(1, self.length):
            yield from ((*start, STOP) for start in product(going, repeat=length - 1))
        yield from ((*start, end) for start in product(going, repeat=self.length - 1) for end in range(self.vocabulary))

    @cached_property
    def lengths(self) -> Tensor:
        """(S,) tokens of each sequence."""
        return torch.tensor([len(sequence) for sequence in self.sequences])

    @cached_property
    def truncated(self) -> Tensor:
        """(S,) bool: those that don't end with the stop token."""
        return torch.tensor([sequence[-1] != STOP for sequence in self.sequences])

    @cached_property
    def right(self) -> Tensor:
        """(G, 2) the right answers, as indices of sequences; one alone where there are only two sequences."""
        count, random = len(self.sequences), torch.Generator().manual_seed(self.seed)
        if count == 2:
            return torch.ones(self.prompts, 1, dtype=torch.long)
        return torch.stack([torch.randperm(count, generator=random)[:2] for _ in range(self.prompts)])

    @cached_property
    def reward(self) -> Tensor:
        """(G, S) r(x, y): 1 for right answers, else 0."""
        zeros = torch.zeros(self.prompts, len(self.sequences), dtype=torch.float64)
        return zeros.scatter_(1, self.right, 1.0)

    @cached_property
    def demonstrator(self) -> Tensor:
        """(G, S) π_β(y | x)."""
        shares = torch.tensor([0.75, 0.25] if self.right.shape[1] == 2 else [1.0], dtype=torch.float64)
        return torch.zeros_like(self.reward).scatter_(1, self.right, shares.expand(self.right.shape))
