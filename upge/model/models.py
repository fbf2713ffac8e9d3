"""The models of a run beside the one in training, each opened once, and what they are asked: log-probs of responses."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from upge.ema import Ema
from upge.errors import ModelError
from upge.model.average import MovingAverage
from upge.model.loading import absolute, belonging, load
from upge.model.lora import adapted, without_adapter
from upge.model.padding import Tokens
from upge.model.policy import Policy
from upge.model_paths import POLICY

Question = tuple[tuple[tuple[Tokens, Tokens], ...], tuple[float, ...]]
"""Pairs of prompt and response ids, and their temperatures."""


class AskedModel:
    """A model that is asked and not trained.

    It keeps its last answer. So several fields that ask the same within a micro-batch cost one pass.

    Args:
        policy: the model that computes; the policy in training, or one of its own.
        accelerator: whose numerics the passes have. They are the policy's: another's would pass for divergence.
        lent: makes the context in which it is this model, as that without its adapter.
    """

    def __init__(
        self,
        policy: Policy,
        accelerator: Accelerator,
        lent: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.policy, self.accelerator, self._lent = policy, accelerator, lent
        self._last: tuple[Question, Tensor] | None = None

    @property
    def sharded(self) -> bool:
        """Whether a pass takes all ranks: then all of them call `log_probs` equally often."""
        return self.policy.sharded

    @torch.no_grad()
    def log_probs(self, sequences: Sequence[tuple[Tokens, Tokens]], temperature: Tensor) -> Tensor:
        """(T,) log-probs of each response token, nats, without gradient; see `upge.model.log_probs`.

        Args: sequences: N pairs (prompt ids, response ids). temperature: (N,), above 0, one for each sequence.

        A question without a response token makes no pass, on this rank alone too.
        """
        if not any(response for _, response in sequences):
            return torch.zeros(0, device=self.accelerator.device)
        temperature = temperature.to(torch.promote_types(torch.float32, self.policy.model.dtype))
        question: Question = tuple(sequences), tuple(temperature.tolist())
        known = self._last is not None and self._last[0] == question
        if not self._everywhere(known) or self._last is None:
            self.forget()
            with self._lent(), self.accelerator.autocast():
                self._last = question, self.policy.log_probs(sequences, temperature)[0]
        return self._last[1].clone()  # whoever asked may write into it

    def forget(self) -> None:
        """Let the last answer go: the model's weights may be others now."""
        self._last = None

    def _everywhere(self, known: bool) -> bool:
        """Whether all ranks of a divided model know the answer: a rank that does must not leave others waiting."""
        if not self.sharded:
            return known
        everybody: Tensor = self.accelerator.reduce(torch.tensor([float(known)], device=self.accelerator.device))
        return int(everybody) == int(self.accelerator.num_processes)


class Models:
    """The models of a run beside the one in training.

    All ranks open the same ones in the same order, before training and before a checkpoint is taken up.

    Args:
        policy: the policy in training.
        accelerator: this process's.
        place: puts a model that isn't trained where it will run; by default, on the accelerator's device.
    """

    def __init__(
        self, policy: Policy, accelerator: Accelerator, place: Callable[[nn.Module], object] | None = None
    ) -> None:
        self.policy, self.accelerator = policy, accelerator
        self._place = place or (lambda model: model.to(accelerator.device))
        self._frozen: dict[str | None, AskedModel] = {}
        self._moving: dict[Ema | None, AskedModel] = {}
        self._averages: dict[Ema, MovingAverage] = {}

    def open(self, path: str | None, *, ema: Ema | None = None) -> AskedModel:
        """A model to ask; the same one for the same path, in whatever form it is written, and the same `ema`.

        Args:
            path: "policy": the policy, as it is when it is asked. None: the policy as it starts, a copy; with LoRA it
                is the policy without its adapter, and nothing is copied. Any other: as `model.path`, with the policy's
                vocabulary.
            ema: of path "policy": a moving average of its trained parameters in their place.

        Raises:
            ModelError: the model can't be opened, or has another vocabulary.
            InputError: DeepSpeed divides the policy in a way that leaves nothing to lend an average to.
            ValueError: a moving average of another model than the policy.
        """
        if path == POLICY:
            return self._policy_by(ema)
        if ema is not None:
            raise ValueError(f"ema: only the policy moves, and {path!r} doesn't: path must be {POLICY!r}")
        name = None if path is None else absolute(path)
        if name not in self._frozen:
            self._frozen[name] = self._start() if path is None else self._loaded(path)
        return self._frozen[name]

    def moved(self) -> None:
        """Note an optimizer step of the policy: what it answered before no longer holds."""
        if None in self._moving:
            self._moving[None].forget()

    def learned(self, step: int) -> None:
        """Note that the updates of rollout batch `step` are made, and update the averages that are due after it."""
        self.moved()
        for settings, average in self._averages.items():
            if average.learned(step):
                self._moving[settings].forget()

    def state(self, *, keep: bool = True) -> dict[str, Tensor]:
        """The averages as `<decay>/<every>/<parameter>`, whole, on the CPU.

        All ranks call it together; it is empty on those that don't `keep` it.
        """
        return {
            f"{_name(settings)}/{name}": x
            for settings, average in self._averages.items()
            for name, x in average.state(keep=keep).items()
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned, on any number of ranks. Raises ValueError where it is of other averages."""
        saved: dict[str, dict[str, Tensor]] = {}
        for key, x in state.items():
            name, _, parameter = key.rpartition("/")
            saved.setdefault(name, {})[parameter] = x
        if odd := sorted(saved.keys() ^ {_name(settings) for settings in self._averages}):
            decay, _, every = odd[0].partition("/")
            place = "checkpoint" if odd[0] in saved else "recipe"
            raise ValueError(f"only the {place} has a moving average with decay {decay} every {every}")
        for settings, average in self._averages.items():
            average.restore(saved[_name(settings)])
        for model in self._moving.values():
            model.forget()

    def _policy_by(self, ema: Ema | None) -> AskedModel:
        if ema not in self._moving:
            lent: Callable[[], AbstractContextManager[None]] = nullcontext
            if ema is not None:
                self._averages[ema] = MovingAverage(self.policy.model, ema)
                lent = self._averages[ema].lent
            self._moving[ema] = AskedModel(self.policy, self.accelerator, lent)
        return self._moving[ema]

    def _start(self) -> AskedModel:
        """The policy as it is now."""
        if adapted(self.policy.model):
            return AskedModel(self.policy, self.accelerator, partial(without_adapter, self.policy.model))
        if self.policy.sharded:  # torch can't copy the module; its parameters it can
            return AskedModel(self.policy, self.accelerator, MovingAverage(self.policy.model, None).lent)
        return self._beside(Policy(copy.deepcopy(self.policy.model), self.policy.tokenizer))

    def _loaded(self, path: str) -> AskedModel:
        belonging(path, self.policy)
        try:
            return self._beside(load(path, dtype=str(self.policy.model.dtype).removeprefix("torch.")))
        except ModelError as error:
            if path in str(error):
                raise
            raise ModelError(f"{path}: {error}") from error

    def _beside(self, policy: Policy) -> AskedModel:
        policy.model.requires_grad_(False)
        self._place(policy.model)
        return AskedModel(policy, self.accelerator)


def _name(settings: Ema) -> str:
    return f"{settings.decay}/{settings.every}"
