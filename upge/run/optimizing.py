"""A model and its optimizer: gradients gathered over micro-batches and ranks, and one guarded step with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from upge.policy import shards
from upge.recipe.schema import Optimizer
from upge.run import sharding
from upge.run.tally import Tally
from upge.schedule import at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Piece = TypeVar("Piece")


class Optimization:
    """A model in training with its AdamW.

    Attributes:
        name: goes before its metrics ("critic/"); empty for the policy. forward: the model as it is to be called.
        sharded: whether its parameters are divided over ranks.
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
        divided = sharding.own(accelerator)
        if divided:
            sharding.divide(model, accelerator)
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=at(settings.lr, 0),
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        if divided:
            self.forward, self.optimizer = model, accelerator.prepare(optimizer)
        else:
            self.forward, self.optimizer = accelerator.prepare(model, optimizer)
        self.forward.eval()
        self.sharded = shards.sharded(model)
        self.updates = self.not_finite = 0

    def backward(self, pieces: Sequence[Piece], loss: Callable[[Piece], Tensor], idle: Callable[[], Tensor]) -> bool:
        """The gradient of Σ loss(piece) over all ranks; False, and nothing done, where no rank has a piece.

        All ranks run the same number of pieces; `idle` is what one that has no more runs, a loss of 0.
        """
        rounds = self.most(len(pieces))
        for index in range(rounds):
            # A divided model's gradients are divided after each piece: whole, they would need the room it saves.
            last = index == rounds - 1 or self.sharded
            with nullcontext() if last else self._unsynchronised():
                own = loss(pieces[index]) if index < len(pieces) else idle()
                self.accelerator.backward(own * self.accelerator.num_processes)  # undoes data parallelism's mean
        return rounds > 0

    def step(self, step: int, tally: Tally) -> None:
        """Clip, then step, unless the gradient is not finite or its norm is above the recipe's limit.

        Raises FloatingPointError: the gradient was not finite too often in a row.
        """
        settings, share = self.settings, 1 / self.accelerator.num_processes
        bound = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = float(shards.full(self.accelerator.clip_grad_norm_(self.model.parameters(), bound)))
        self.not_finite = 0 if math.isfinite(norm) else self.not_finite + 1
        if self.not_finite:
            tally.add(f"{self.name}updates/not_finite", share)
            if self.accelerator.scaler is not None:
                self.optimizer.step()  # float16's loss scaler makes no step either, but must learn to scale less
        elif settings.skip_above is not None and norm > settings.skip_above:
            tally.add(f"{self.name}updates/skipped", share)
        else:
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(step)
            self.optimizer.step()
            self.updates += 1
            tally.add(f"{self.name}updates/made", share)
            tally.mean(f"{self.name}grad_norm", norm * share, share)
        self.optimizer.zero_grad()
        self._bear(step)

    def _bear(self, step: int) -> None:
        if self.patience and self.not_finite >= self.patience:
            block = (self.name or "optimizer").rstrip("/")
            raise FloatingPointError(
                f"step {step}: the gradient was not finite {self.not_finite} times in a row; no such step was taken, "
                f"but what makes it so stays: lower {block}.lr, set {block}.clip_norm, or look at the last completions "
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

    def _unsynchronised(self) -> Any:
        no_sync: Callable[[Any], Any] = self.accelerator.no_sync
        return no_sync(self.forward)
