"""Checks, run once on every model, that a faster computation gives the same results.

A check runs once for each model, when its result is first needed, on a few arbitrary tokens.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import nn

from upge.model.padding import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Sequences = list[tuple[Tokens, Tokens]]

_SEQUENCES: Sequences = [
    *(((3, 5, 2), response) for response in ((4, 1, 6), (7,), (2, 2, 5, 3))),
    *(((6, 1), response) for response in ((1, 4), (5, 7, 2))),
]


class Proof:
    """A check that runs once on each model, and warns with the reason if it fails.

    Models are known by identity, and aren't kept alive.

    Args:
        refusal: the text of the warning, with {model} for the class and {fault} for the reason.
        failing: the fault of a model that raises when it's tried; the error follows in brackets.
    """

    def __init__(self, refusal: str, *, failing: str) -> None:
        self._refusal, self._failing = refusal, failing
        self._known: WeakKeyDictionary[nn.Module, dict[Hashable, bool]] = WeakKeyDictionary()

    def holds(
        self, model: PreTrainedModel, kind: Hashable, trial: Callable[[], str | None], *, stacklevel: int = 2
    ) -> bool:
        """Whether the claim holds for a model.

        Args:
            kind: what of the model the answer depends on and may change: it's tried once for each.
            trial: runs the model, and returns the fault or None. It runs in full precision, in evaluation
                mode and without gradients, and leaves no trace: neither in modes nor in random states.
            stacklevel: whose call the warning names, as in `warnings.warn`; 2: the caller's.
        """
        known = self._known.setdefault(model, {})
        if kind not in known:
            fault = self._fault(model, trial)
            known[kind] = fault is None
            if fault is not None:
                message = self._refusal.format(model=type(model).__name__, fault=fault)
                warnings.warn(message, stacklevel=stacklevel)
        return known[kind]

    def _fault(self, model: PreTrainedModel, trial: Callable[[], str | None]) -> str | None:
        try:
            with undisturbed(model):
                return trial()
        except Exception as error:  # whatever a model makes of what it doesn't know
            return f"{self._failing} ({type(error).__name__}: {str(error)[:100]})"


@contextmanager
def undisturbed(model: PreTrainedModel) -> Iterator[None]:
    """While open, a model is itself: no dropout, no gradients, and no autocast, around it or put on it by accelerate.

    Half precision's rounding would pass for a fault. What was is put back, and so are torch's random states.
    """
    modes = [(module, module.training) for module in model.modules()]
    prepared, original = vars(model).get("forward"), vars(model).get("_original_forward")  # accelerate's names
    device = model.device
    drawing = {parameter.device for parameter in model.parameters() if parameter.device.type in ("cuda", "xpu")}
    try:
        for module, _ in modes:
            module.training = False
        if prepared is not None and original is not None:
            model.forward = original
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.random.fork_rng(drawing, device_type=device.type),
        ):
            yield
    finally:
        if prepared is not None:
            model.forward = prepared
        for module, training in modes:
            module.training = training


def sequences(model: PreTrainedModel) -> Sequences:
    """Arbitrary pairs (prompt ids, response ids): two prompts with several responses each, of valid ids."""
    return within(model, _SEQUENCES)


def within(model: PreTrainedModel, sequences: Sequences) -> Sequences:
    """The same pairs, with ids that a small vocabulary has."""
    size = int(model.config.get_text_config().vocab_size)
    return [([token % size for token in prompt], [token % size for token in answer]) for prompt, answer in sequences]


def precision(model: nn.Module) -> int:
    """Bytes of the narrowest floating-point parameter, which bounds the precision of the model's results."""
    return min((parameter.itemsize for parameter in model.parameters() if parameter.is_floating_point()), default=4)
