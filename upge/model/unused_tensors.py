"""What a checkpoint has and a model's class has no place for: it isn't loaded, and the model that is saved lacks it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

_DERIVED = re.compile(r"(^|\.)(inv_freq|original_inv_freq|position_ids|(attn|attention)\.(masked_)?bias)$")
"""Buffers that old checkpoints have and that follow from the config."""


@contextmanager
def recorded() -> Iterator[set[str]]:
    """While open, the names of such tensors are collected from whatever transformers opens.

    Transformers' own report leaves out what a class declares it will ignore, as layers for multi-token prediction.
    """
    found: set[str] = set()
    name = "_adjust_missing_and_unexpected_keys"
    own = getattr(PreTrainedModel, name, None)
    if own is None:  # another version of transformers, which has it elsewhere
        yield found
        return

    def recording(model: PreTrainedModel, report: Any, *given: Any, **named: Any) -> Any:
        found.update(key for key in getattr(report, "unexpected_keys", ()) if not _DERIVED.search(key))
        return own(model, report, *given, **named)

    setattr(PreTrainedModel, name, recording)
    try:
        yield found
    finally:
        setattr(PreTrainedModel, name, own)


def note(model: PreTrainedModel, names: Sequence[str]) -> str | None:
    """The sentence that tells of them; None where there are none."""
    if not names:
        return None
    kind = type(model).__name__
    return (
        f"model: {counted(names)} of the checkpoint have no place in {kind} and aren't loaded, for example {names[0]}"
    )


def lacking(names: Sequence[str]) -> str:
    """The sentence that says of a saved model what it lacks."""
    return f"the trained model lacks {counted(names)} that its checkpoint had, for example {names[0]}"


def counted(names: Sequence[str]) -> str:
    """How many they are."""
    return f"{len(names)} tensor{'s' * (len(names) != 1)}"
