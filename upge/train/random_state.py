"""The global random generators. What upge draws is keyed and needs none of them; a part may use any."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from upge.errors import InputError

State = dict[str, Any]
"""A process's generators, as JSON."""


def seed(number: int, rank: int) -> None:
    """Start them all, each rank's its own way."""
    random.seed(number + rank)
    np.random.seed((number + rank) % 2**32)
    torch.manual_seed(number + rank)  # every device's too


def state() -> State:
    """Where Python's, numpy's, torch's and the accelerator's generators stand in this process."""
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    found: State = {
        "python": [version, list(words), gauss],
        "numpy": [name, [int(key) for key in keys], int(position), int(has_gauss), float(cached)],
        "torch": _text(torch.get_rng_state()),
    }
    device = _device()
    return found if device is None else found | {"device": _text(device.get_rng_state())}


def restore(saved: State) -> None:
    """Put this process's generators where `state` found them. Raises InputError where it is no such state."""
    try:
        _restore(saved)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RuntimeError) as error:
        raise InputError(f"random.json: no state of the random generators ({type(error).__name__}: {error})") from error


def _restore(saved: State) -> None:
    version, words, gauss = saved["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = saved["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, cached))
    torch.set_rng_state(_bytes(saved["torch"]))
    device = _device()
    if device is not None and "device" in saved:
        device.set_rng_state(_bytes(saved["device"]))


def _device() -> Any:
    """The module of this process's accelerator (`torch.cuda`, say), where there is one."""
    if not torch.accelerator.is_available():
        return None
    return torch.get_device_module(torch.accelerator.current_accelerator())


def _text(numbers: Tensor) -> str:
    return base64.b64encode(numbers.cpu().numpy().tobytes()).decode("ascii")


def _bytes(text: str) -> Tensor:
    return torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8)
