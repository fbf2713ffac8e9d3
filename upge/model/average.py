"""A moving average of the policy's trained parameters, which its module computes with while it is lent to it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from upge.ema import Ema
from upge.errors import InputError
from upge.model import shards


class MovingAverage:
    """s, the average of a model's trained parameters θ; it begins as θ is when it is made.

    With LoRA these are A and B of each layer, averaged one by one. Averages have the parameters' own type, but float32
    at least. Of a model divided by FSDP2 a rank has the average of its own shards, and lending them sends nothing.

    Args:
        model: placed where it is trained. settings: the update; None: s stays what it is.

    Raises:
        InputError: DeepSpeed divides the parameters, at stage 3 of ZeRO.
    """

    def __init__(self, model: nn.Module, settings: Ema | None) -> None:
        if any(map(shards.by_zero, model.parameters())):
            raise InputError(
                "a moving average, or a copy, of the policy's parameters can't be lent to a model that DeepSpeed "
                "divides at stage 3: set zero_stage to 1 or 2, or use FSDP (fsdp_version: 2)"
            )
        self.model, self.settings = model, settings
        # Its tensors are replaced and never changed in place: what `state` returns may be them.
        self.average = {name: _precise(x) for name, x in self._trained().items()}

    def learned(self, step: int) -> bool:
        """Update s if that is due after rollout batch `step`, counted from 0; whether it was."""
        if self.settings is None or (step + 1) % self.settings.every:
            return False
        for name, x in self._trained().items():
            now, decay = _precise(x), self.settings.decay
            self.average[name] = self.average[name].lerp(now, 1 - decay) if decay else now
        return True

    @contextmanager
    def lent(self) -> Iterator[None]:
        """While open, the model computes with s, rounded to the parameters' type. Afterwards each bit of θ is back."""
        parameters = self._trained()
        before = {name: x.detach().clone() for name, x in parameters.items()}
        try:
            _write(parameters, self.average)
            yield
        finally:
            shards.settle(self.model)  # what a pass has left gathered is of s
            _write(parameters, before)

    def state(self, *, keep: bool) -> dict[str, Tensor]:
        """s by parameter name, whole, on the CPU; empty on ranks that don't `keep` it. All ranks call it."""
        return shards.whole(self.average.items(), keep=keep)

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned, on any number of ranks. Raises ValueError where it is another model's."""
        if odd := sorted(state.keys() ^ self.average.keys()):
            raise ValueError(f"the moving average is of other parameters: {odd[0]} doesn't fit")
        for name, x in self.average.items():
            if state[name].shape != x.shape:
                raise ValueError(f"the moving average of {name} is {list(state[name].shape)}, not {list(x.shape)}")
            self.average[name] = shards.parted(state[name].to(x.dtype), x)

    def _trained(self) -> dict[str, nn.Parameter]:
        """θ by name, as each rank has it."""
        shards.settle(self.model)
        return {name: x for name, x in self.model.named_parameters() if x.requires_grad}


def _precise(x: Tensor) -> Tensor:
    """A copy of a parameter in its own type, but float32 at least."""
    return x.detach().to(torch.promote_types(x.dtype, torch.float32), copy=True)


@torch.no_grad()
def _write(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Write in place, since optimizers and FSDP keep views; through `data`, since a backward pass may be to come."""
    for name, parameter in parameters.items():
        parameter.data.copy_(values[name])
