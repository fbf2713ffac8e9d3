"""Noise without a generator: a counter hash of keys, so that a number depends on what it belongs to and nothing else.

    noise = top bits of mix(key + γ·counter), mixed once more with the place of the part that asks

`mix` is the finalizer of SplitMix64 (Steele, Lea and Flood 2014), γ its increment. Sums and products wrap at 64 bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from upge.types import key_of

_INCREMENT = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_SHIFTS = (30, 27, 31)


def mixed(x: Tensor) -> Tensor:
    """int64 → int64: bits that look random, a bijection."""
    x = x ^ _shifted(x, _SHIFTS[0])
    x = x * signed(_FACTORS[0])
    x = x ^ _shifted(x, _SHIFTS[1])
    x = x * signed(_FACTORS[1])
    return x ^ _shifted(x, _SHIFTS[2])


def counted(key: Tensor, counter: Tensor) -> Tensor:
    """int64: the hash of each key with its counter, from 0."""
    return mixed(key + (counter + 1) * signed(_INCREMENT))


def uniform(key: Tensor, place: str, dtype: torch.dtype) -> Tensor:
    """A number in [0, 1) for each key and the part at this place: 53 random bits in float64, else 24."""
    bits = mixed(key ^ signed(key_of(place)))
    if dtype == torch.float64:
        return _shifted(bits, 11).to(dtype) * 2.0**-53
    return _shifted(bits, 40).to(dtype) * 2.0**-24


def _shifted(x: Tensor, by: int) -> Tensor:
    """The bits moved to the right, zeros from the left."""
    return (x >> by) & ((1 << (64 - by)) - 1)


def signed(x: int) -> int:
    """The signed integer of the same 64 bits."""
    return x - (1 << 64) if x >= 1 << 63 else x
