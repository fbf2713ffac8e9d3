"""How a model's gradient, weights and moments lie over ranks while it is trained: what `Optimization` leaves to others.

Whole on every rank (data parallelism) or divided by FSDP2, both by accelerate; for ZeRO see `upge.distributed.zero`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor, nn

from upge.distributed import fsdp
from upge.model import shards, text_scope

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MakeAdamW = Callable[[nn.Module], torch.optim.AdamW]
"""Makes the AdamW of what wants a gradient in a model."""

Moments = dict[str, dict[str, Tensor]]
"""What AdamW keeps, as {parameter: {moment: tensor}}."""


class Strategy(ABC):
    """A model with its AdamW, of which each rank holds all or a part. All ranks call each method together.

    Attributes:
        model: unwrapped. forward: the model as it is to be called in training.
        adamw: torch's, with what this rank updates.
        sharded: whether the parameters are divided over ranks, so that each pass takes all of them.
    """

    model: PreTrainedModel
    forward: Callable[..., Any]
    adamw: torch.optim.Optimizer
    sharded: bool

    @abstractmethod
    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        """A context for one forward pass and `backward`; `last`: of the optimizer step."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the mean over ranks of a loss's gradient to what is there."""

    @abstractmethod
    def clip(self) -> float:
        """The norm of the gradient, the same on all ranks; it is scaled down to the recipe's before `step`."""

    @abstractmethod
    def step(self, rate: float) -> None:
        """Step with the gradient, and forget it."""

    @abstractmethod
    def discard(self) -> None:
        """Forget the gradient."""

    @abstractmethod
    def moments(self, *, keep: bool) -> dict[str, Tensor]:
        """AdamW's tensors as `<parameter>/<moment>`, whole; empty on ranks that don't `keep` them."""

    @abstractmethod
    def restore(self, moments: Moments) -> None:
        """Take up whole moments, which every rank has, and the weights that the model has been given before."""

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters that want a gradient, with their names."""
        return [(name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad]


class Accelerated(Strategy):
    """By accelerate: the model whole on every rank, or divided by FSDP2."""

    def __init__(
        self, model: PreTrainedModel, accelerator: Accelerator, make_adamw: MakeAdamW, clip_norm: float | None
    ) -> None:
        self.model, self.accelerator = model, accelerator
        self.bound = math.inf if clip_norm is None else clip_norm
        divided = fsdp.own(accelerator)
        if divided:
            fsdp.divide(model, accelerator)
        elif fsdp.requested() is None and accelerator.distributed_type != DistributedType.NO:
            # What no row reaches would keep data parallelism waiting for its gradient, and the others' from their mean.
            model.to(accelerator.device)
            text_scope.freeze(model, text_scope.unreached(model))
        optimizer = make_adamw(model)
        if divided:
            wrapped, self.optimizer = model, accelerator.prepare(optimizer)
        else:
            wrapped, self.optimizer = accelerator.prepare(model, optimizer)
        self.forward = wrapped.eval()
        self.adamw = self.optimizer.optimizer
        self.sharded = shards.sharded(model)
        self._finite = True

    def micro_batch(self, *, last: bool) -> AbstractContextManager[None]:
        # A divided model's gradients are divided after each piece: whole, they would need the room it saves.
        if last or self.sharded:
            return nullcontext()
        unsynchronised: AbstractContextManager[None] = self.accelerator.no_sync(self.forward)
        return unsynchronised

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def clip(self) -> float:
        norm = float(shards.full(self.accelerator.clip_grad_norm_(self.model.parameters(), self.bound)))
        self._finite = math.isfinite(norm)
        return norm

    def step(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def discard(self) -> None:
        if not self._finite and self.accelerator.scaler is not None:
            self.optimizer.step()  # float16's loss scaler makes no step either, but must learn to scale less
        self.optimizer.zero_grad()

    def moments(self, *, keep: bool) -> dict[str, Tensor]:
        state = self.optimizer.state
        return shards.whole(
            (
                (f"{name}/{moment}", torch.as_tensor(x))
                for name, parameter in self.trained()
                for moment, x in state.get(parameter, {}).items()
            ),
            keep=keep,
        )

    def restore(self, moments: Moments) -> None:
        parameters = dict(self.trained())
        for name, tensors in moments.items():
            parameter = parameters[name]
            self.optimizer.state[parameter] = {
                moment: x if moment == "step" else shards.parted(x, parameter) for moment, x in tensors.items()
            }

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        shards.settle(self.model)
        return super().trained()
