"""Faults that show in a tensor's numbers: flags on its device, which are read once an optimizer step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Guards:
    """Flags, each with the error to raise if it is set. Setting one asks the device nothing; reading asks it once."""

    def __init__(self) -> None:
        self._flags: list[Tensor] = []
        self._errors: list[Callable[[], Exception]] = []

    def flag(self, wrong: Tensor, error: Callable[[], Exception]) -> None:
        """Set a flag, () bool. `error` makes what is raised if it is True; it may look at tensors."""
        self._flags.append(wrong)
        self._errors.append(error)

    def read(self) -> None:
        """Raise the error of the first flag that is set; then there are none."""
        flags, errors = self._flags, self._errors
        self._flags, self._errors = [], []
        if flags:
            for wrong, error in zip(torch.stack(flags).tolist(), errors, strict=True):
                if wrong:
                    raise error()
