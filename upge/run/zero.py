"""ZeRO, by DeepSpeed: of each model in training a rank has the moments of its share, or gradients and parameters too.

A run holds the engine itself. It says which micro-batch is the last, looks at the norm, and only then has it step; the
AdamW inside is torch's. Weights and moments are read and written whole, so that checkpoints are those of any other run.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from upge.policy import shards
from upge.recipe.schema import Optimizer
from upge.run import deepspeed_config
from upge.run.strategies import Moments, Strategy, adamw

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def open_engine(
    model: nn.Module,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer | None = None,
    clip: float | None = None,
) -> Any:
    """DeepSpeed's engine around a model, without an optimizer too; at stage 3 its parameters are divided in place."""
    zero = {"reduce_bucket_size": _bucket(model), **deepspeed_config.zero()}
    settings = {
        "train_micro_batch_size_per_gpu": 1,  # of which it only counts samples; a run has its own micro-batches
        "gradient_accumulation_steps": 1,
        "gradient_clipping": clip or 0.0,
        "zero_optimization": zero,
    }
    with _quietly():
        import deepspeed

        deepspeed.init_distributed(dist_backend=torch.distributed.get_backend(), dist_init_required=False)
        divided = zero["stage"] == 3
        if divided:  # one parameter after another, so that no device ever holds all of them
            deepspeed.zero.Init(module=model, config_dict_or_path=settings)
            for buffer in model.buffers():
                buffer.data = buffer.to(accelerator.device)
        # Not its bf16, which would make the parameters themselves bfloat16, but autocast, as in any other run.
        accelerator.prepare_model(model, device_placement=not divided, evaluation_mode=True)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    engine.eval()
    return engine


def _bucket(model: nn.Module) -> int:
    """Elements of the buffer that gradients are summed in: DeepSpeed's default, or all there are if these are fewer."""
    return min(500_000_000, max(1, sum(each.numel() for each in model.parameters() if each.requires_grad)))


class Zero(Strategy):
    """A model in a DeepSpeed engine."""

    def __init__(self, model: PreTrainedModel, settings: Optimizer, accelerator: Accelerator) -> None:
        self.model = model
        self.adamw = adamw(model, settings)
        self.forward = self.engine = open_engine(model, accelerator, self.adamw, settings.clip_norm)
        self.optimizer = self.engine.optimizer
        self.sharded = shards.sharded(model)

    @contextmanager
    def micro_batch(self, *, last: bool) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: Tensor) -> None:
        self.engine.backward(loss, scale_wrt_gas=False)

    def clip(self) -> float:
        # The step scales the gradient down, by the same formula. What isn't finite comes as -1.
        optimizer, gradients = self.optimizer, self.optimizer.averaged_gradients
        groups = optimizer.fp16_groups if self.sharded else optimizer.params_in_partition
        norms = [float(optimizer.get_grad_norm_direct(gradients[i], group)) for i, group in enumerate(groups)]
        return sum(norm**2 for norm in norms) ** 0.5 if min(norms) >= 0 else float("nan")

    def step(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()

    def discard(self) -> None:
        self.optimizer.zero_grad()
        self.optimizer.averaged_gradients.clear()

    def moments(self, *, keep: bool) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, Tensor] = {}
        state = self._state()
        for name, parameter in self.trained() if state else ():
            for moment, own in state.items():
                x = own if moment == "step" else safe_get_full_optimizer_state(parameter, moment)
                if keep:
                    found[f"{name}/{moment}"] = x.cpu().clone()
        return found

    def _state(self) -> dict[str, Tensor]:
        """AdamW's of a flat group, all of which have made the same steps; empty before the first."""
        return next(iter(self.optimizer.state.values()), {})

    def restore(self, moments: Moments) -> None:
        self._make_room(moments)
        for name, parameter in self.trained():
            self._put(parameter, parameter.ds_tensor if self.sharded else parameter.data)  # type: ignore[attr-defined]
            for moment, x in moments.get(name, {}).items():
                if moment != "step":
                    self._put(parameter, shards.parted(x, parameter), moment)

    def _make_room(self, moments: Moments) -> None:
        """Moments of 0, that of one flat tensor for each group of parameters."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        self.adamw.state.clear()
        steps = {float(given["step"]) for given in moments.values()}
        if len(steps) > 1 or moments.keys() not in (set(), {name for name, _ in self.trained()}):
            raise ValueError("ZeRO steps with all parameters at once, and the moments are of several steps")
        optimizer = self.optimizer
        flats = optimizer.fp32_partitioned_groups_flat if self.sharded else optimizer.single_partition_of_fp32_groups
        for index, flat in enumerate(flats):
            for step in steps:
                zeros = {moment: torch.zeros_like(flat) for moment in ("exp_avg", "exp_avg_sq")}
                self.adamw.state[flat] = {"step": torch.tensor(step), **zeros}
            if steps and not self.sharded:
                lazy_init_hp_params_optimizer_state(optimizer.bit16_groups[index], flat, self.adamw.state)

    def _put(self, parameter: nn.Parameter, x: Tensor, moment: str | None = None) -> None:
        """Write this rank's share of a moment, or of the weights that are updated: whole, or cut at stage 3."""
        from deepspeed import utils

        whole = (utils.safe_set_full_fp32_param, utils.safe_set_full_optimizer_state)
        cut = (utils.safe_set_local_fp32_param, utils.safe_set_local_optimizer_state)
        weights, moments = cut if self.sharded else whole
        if moment is None:
            weights(parameter, x)
        else:
            moments(parameter, x, moment)


@contextmanager
def _quietly() -> Iterator[None]:
    """DeepSpeed talks on stdout, which is for data, and torch of DeepSpeed's calls."""
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    with redirect_stdout(sys.stderr):
        yield
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
