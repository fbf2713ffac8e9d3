"""Models as accelerate prepares them for half precision; it keeps one setting a process, which is put back here."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import PreTrainedModel


def prepared(model: PreTrainedModel) -> PreTrainedModel:
    """The model, its forward wrapped in autocast and in a conversion of what it answers to float32."""
    kept = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    try:
        Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    finally:
        AcceleratorState._reset_state()
        AcceleratorState._shared_state.update(kept)
    assert "forward" in vars(model)
    return model
