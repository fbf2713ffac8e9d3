"""A model and its optimizer: gradients gathered over micro-batches and ranks, and one guarded step with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from upge.distributed import deepspeed_config, fsdp, zero
from upge.distributed.strategies import Accelerated, Strategy
from upge.recipe.schema import Optimizer
from upge.schedule import at
from upge.train.metrics import StepMetrics

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PER_TENSOR = 1024
"""Weights of each tensor that are looked at."""

UPDATES = 3
"""How many of a run's updates, and how many of its rollout batches once the warm-up is over, are looked at."""


class Movement:
    """Some weights as they were before a step: of each tensor evenly spaced ones, where their gradient isn't 0."""

    def __init__(self, weights: Sequence[tuple[nn.Parameter, Tensor, Tensor]]) -> None:
        self._weights = weights

    @classmethod
    def of(cls, model: nn.Module) -> Self:
        """Of the parameters that have a gradient here."""
        return cls([(each, _some(each), _some(each.grad) != 0) for each in model.parameters() if each.grad is not None])

    def counts(self) -> tuple[float, float]:
        """How many of them are others now, and how many there are."""
        pairs = [((_some(each) != before)[pushed], pushed) for each, before, pushed in self._weights]
        return float(sum(moved.sum() for moved, _ in pairs)), float(sum(pushed.sum() for _, pushed in pairs))


@torch.no_grad()
def _some(x: Tensor) -> Tensor:
    """Evenly spaced numbers of a tensor; of one that is divided over ranks, of this rank's part."""
    local = x.to_local() if hasattr(x, "to_local") else x
    flat = local.detach().flatten()
    return flat[:: max(1, flat.numel() // PER_TENSOR)][:PER_TENSOR].clone()


Piece = TypeVar("Piece")


def place(model: nn.Module, accelerator: Accelerator) -> None:
    """Put a model that isn't trained where it will run, divided over ranks if those in training are."""
    if not fsdp.by_deepspeed(accelerator):
        model.to(accelerator.device)
        fsdp.divide(model, accelerator)
    elif deepspeed_config.stage() == 3:
        zero.open_engine(model, accelerator)
    else:
        model.to(accelerator.device)


def adamw(settings: Optimizer, model: nn.Module) -> torch.optim.AdamW:
    """The recipe's AdamW for what wants a gradient."""
    return torch.optim.AdamW(
        [parameter for parameter in model.parameters() if parameter.requires_grad],
        lr=at(settings.lr, 0),
        betas=settings.betas,
        eps=settings.epsilon,
        weight_decay=settings.weight_decay,
    )


class Optimization:
    """A model in training with its AdamW.

    Attributes:
        name: goes before its metrics ("critic/"); empty for the policy. forward: the model as it is to be called.
        strategy: how all of it lies over ranks. sharded: whether the parameters are divided.
        updates: optimizer steps made. not_finite: steps not taken, in a row, because the gradient wasn't finite.

    Args: patience: how many of those in a row the run bears; 0: any number.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: Optimizer,
        accelerator: Accelerator,
        name: str = "",
        *,
        patience: int = 0,
    ) -> None:
        self.model, self.settings, self.accelerator, self.name = model, settings, accelerator, name
        self.patience = patience
        way = zero.strategy() if fsdp.by_deepspeed(accelerator) else Accelerated
        self.strategy: Strategy = way(model, accelerator, partial(adamw, settings), settings.clip_norm)
        self.forward, self.sharded = self.strategy.forward, self.strategy.sharded
        self.updates = self.not_finite = 0

    def backward(self, pieces: Sequence[Piece], loss: Callable[[Piece], Tensor], idle: Callable[[], Tensor]) -> bool:
        """The gradient of Σ loss(piece) over all ranks; False, and nothing done, where no rank has a piece.

        All ranks run the same number of pieces; `idle` is what one that has no more runs, a loss of 0.
        """
        rounds = self.most(len(pieces))
        for index in range(rounds):
            with self.strategy.micro_batch(last=index == rounds - 1):
                own = loss(pieces[index]) if index < len(pieces) else idle()
                self.strategy.backward(own * self.accelerator.num_processes)  # undoes data parallelism's mean
        return rounds > 0

    def step(self, step: int, tally: StepMetrics) -> None:
        """Clip, then step, unless the gradient is not finite or its norm is above the recipe's limit.

        Raises FloatingPointError: the gradient was not finite too often in a row.
        """
        settings, share = self.settings, 1 / self.accelerator.num_processes
        norm = self.strategy.clip()
        self.not_finite = 0 if math.isfinite(norm) else self.not_finite + 1
        if self.not_finite:
            tally.add(f"{self.name}updates/not_finite", share)
            self.strategy.discard()
        elif settings.skip_above is not None and norm > settings.skip_above:
            tally.add(f"{self.name}updates/skipped", share)
            self.strategy.discard()
        else:
            watched = None if self.name or not self._moves_first(step) else Movement.of(self.model)
            self.strategy.step(self.rate(step))
            if watched is not None:
                tally.mean("weights/changed", *watched.counts())
            self.updates += 1
            tally.add(f"{self.name}updates/made", share)
            tally.mean(f"{self.name}grad_norm", norm * share, share)
        self._bear(step)

    def _moves_first(self, step: int) -> bool:
        """Whether this is one of the first updates at the whole learning rate; the same in a run that was resumed."""
        after = step - self.settings.warmup
        return self.rate(step) > 0 and after >= 0 and (after < UPDATES or self.updates < UPDATES)

    def _bear(self, step: int) -> None:
        if self.patience and self.not_finite >= self.patience:
            block = (self.name or "optimizer").rstrip("/")
            raise FloatingPointError(
                f"step {step}: the gradient was not finite {self.not_finite} times in a row. These steps were skipped, "
                f"but their cause remains: lower {block}.lr, set {block}.clip_norm, or read the last completions "
                "(train.not_finite_limit: 0 never stops)"
            )

    def rate(self, step: int) -> float:
        """The learning rate at rollout batch `step`."""
        return at(self.settings.lr, step) * min(1.0, (step + 1) / (self.settings.warmup + 1))

    def scaler(self) -> dict[str, Any]:
        """The state of float16's loss scaler; empty in other precisions."""
        return {} if self.accelerator.scaler is None else dict(self.accelerator.scaler.state_dict())

    def most(self, count: int) -> int:
        """The largest of the ranks' counts."""
        if self.accelerator.num_processes == 1:
            return count
        counts: Tensor = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.max())
