"""What vLLM's workers do for upge; they import this module themselves, by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

EXTENSION = f"{__name__}.TakingOver"
"""The value of vLLM's `worker_extension_cls`."""


class TakingOver:
    """Methods added to vLLM's `Worker`."""

    def take_over(self, folder: str) -> None:
        """Load the weights in `folder`, in the Hub's format, in place of the worker's; FileNotFoundError without it."""
        if not Path(
            folder
        ).is_dir():  # vLLM would look for a model of this name on the Hub, and be left without weights
            raise FileNotFoundError(f"this machine sees no folder '{folder}', where the trainer left the weights")
        worker: Any = self
        worker.reload_weights(weights_path=folder)
        for layer in worker.model_runner.get_model().modules():
            _repack(layer)


def _repack(layer: Any) -> None:
    """Let an output layer make its packed copy again.

    One that is tied to the input embeddings has no weights of its own in the files, so vLLM passes it over, and on CPUs
    it would go on with a packed copy of the old ones.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, UnquantizedEmbeddingMethod

    if isinstance(layer, ParallelLMHead) and isinstance(layer.quant_method, UnquantizedEmbeddingMethod):
        layer.quant_method.process_weights_after_loading(layer)
