"""A model and its optimizer: gradients gathered over micro-batches and ranks, and one guarded step with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor

from upge.recipe.schema import Optimizer
from upge.run.tally import Tally
from upge.schedule import at

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Piece = TypeVar("Piece")


class Optimization:
    """A model in training with its AdamW.

    Attributes:
        name: goes before its metrics ("critic/"); empty for the policy. forward: the model as it is to be called.
        updates: optimizer steps made.
    """

    def __init__(self, model: PreTrainedModel, settings: Optimizer, accelerator: Accelerator, name: str = "") -> None:
        self.model, self.settings, self.accelerator, self.name = model, settings, accelerator, name
        optimizer = torch.optim.AdamW(
            [parameter for parameter in model.parameters() if parameter.requires_grad],
            lr=at(settings.lr, 0),
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
        )
        self.forward, self.optimizer = accelerator.prepare(model, optimizer)
        self.forward.eval()
        self.updates = 0

    def backward(self, pieces: Sequence[Piece], loss: Callable[[Piece], Tensor], idle: Callable[[], Tensor]) -> bool:
        """The gradient of Σ loss(piece) over all ranks; False, and nothing done, where no rank has a piece.

        All ranks run the same number of pieces; `idle` is what one that has no more runs, a loss of 0.
        """
        rounds = self._most(len(pieces))
        for index in range(rounds):
            with self._unsynchronised() if index < rounds - 1 else nullcontext():
                own = loss(pieces[index]) if index < len(pieces) else idle()
                self.accelerator.backward(own * self.accelerator.num_processes)  # undoes data parallelism's mean
        return rounds > 0

    def step(self, step: int, tally: Tally) -> None:
        """Clip, then step, unless the gradient is not finite or its norm is above the recipe's limit."""
        settings, share = self.settings, 1 / self.accelerator.num_processes
        bound = math.inf if settings.clip_norm is None else settings.clip_norm
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), bound))
        if not math.isfinite(norm):
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

    def rate(self, step: int) -> float:
        """The learning rate at rollout batch `step`."""
        return at(self.settings.lr, step) * min(1.0, (step + 1) / (self.settings.warmup + 1))

    def _most(self, count: int) -> int:
        """The largest of the ranks' counts."""
        if self.accelerator.num_processes == 1:
            return count
        counts: Tensor = self.accelerator.gather(torch.tensor([count], device=self.accelerator.device))
        return int(counts.max())

    def _unsynchronised(self) -> Any:
        no_sync: Callable[[Any], Any] = self.accelerator.no_sync
        return no_sync(self.forward)
