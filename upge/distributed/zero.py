"""ZeRO, by DeepSpeed: of each model in training a rank has the moments of its share, or gradients and parameters too.

A run creates the engine itself. It marks the last micro-batch, checks the norm, and only then calls the step; the
AdamW inside is torch's. Weights and moments are read and written whole, so that checkpoints are those of any other run.
"""

from __future__ import annotations

import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from upge.distributed import deepspeed_config
from upge.distributed.strategies import MakeAdamW, Moments, Strategy
from upge.model import shards

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


def strategy() -> type[Zero]:
    """That of the stage which accelerate's config requests."""
    return ZeroWithParameters if deepspeed_config.stage() == 3 else Zero


def _bucket(model: nn.Module) -> int:
    """Elements of the buffer that gradients are summed in: DeepSpeed's default, or all there are if these are fewer."""
    return min(
        500_000_000, max(1, sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad))
    )


class Zero(Strategy):
    """A model in a DeepSpeed engine, whole on every rank; moments are divided (stage 1), and gradients (stage 2).

    The engine's optimizer steps with flat tensors: this rank's share of all parameters, in groups.
    """

    def __init__(
        self, model: PreTrainedModel, accelerator: Accelerator, make_adamw: MakeAdamW, clip_norm: float | None
    ) -> None:
        self.model = model
        self.adamw = make_adamw(model)
        self.forward = self.engine = open_engine(model, accelerator, self.adamw, clip_norm)
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
        norms = [float(optimizer.get_grad_norm_direct(gradients[i], group)) for i, group in enumerate(self._groups())]
        return math.hypot(*norms) if min(norms) >= 0 else math.nan

    def step(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.engine.step()

    def discard(self) -> None:
        self.optimizer.zero_grad()
        self.optimizer.averaged_gradients.clear()

    def moments(self, *, keep: bool) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        tensors: dict[str, Tensor] = {}
        # All flat tensors have made the same steps; before the first there is nothing.
        state: dict[str, Tensor] = next(iter(self.adamw.state.values()), {})
        for name, parameter in self.trained() if state else ():
            for moment, shard in state.items():
                x = shard if moment == "step" else safe_get_full_optimizer_state(parameter, moment)
                if keep:
                    tensors[f"{name}/{moment}"] = x.cpu().clone()
        return tensors

    def restore(self, moments: Moments) -> None:
        self._make_room(moments)
        for name, parameter in self.trained():
            self._put(parameter)
            for moment, x in moments.get(name, {}).items():
                if moment != "step":
                    self._put(parameter, shards.parted(x, parameter), moment)

    def _make_room(self, moments: Moments) -> None:
        """Moments of 0 of each flat tensor, after as many steps."""
        steps = {float(tensors["step"]) for tensors in moments.values()}
        if len(steps) > 1 or moments.keys() not in (set(), {name for name, _ in self.trained()}):
            raise ValueError("ZeRO steps with all parameters at once, and the moments are of several steps")
        self.adamw.state.clear()
        for step in steps:
            for flat in self._flats():
                zeros = {moment: torch.zeros_like(flat) for moment in ("exp_avg", "exp_avg_sq")}
                self.adamw.state[flat] = {"step": torch.tensor(step), **zeros}
            self._link()

    def _groups(self) -> Sequence[list[nn.Parameter]]:
        """The parameters of which this rank has a gradient."""
        groups: Sequence[list[nn.Parameter]] = self.optimizer.params_in_partition
        return groups

    def _flats(self) -> Sequence[Tensor]:
        """The flat parameters that the optimizer updates."""
        flats: Sequence[Tensor] = self.optimizer.single_partition_of_fp32_groups
        return flats

    def _link(self) -> None:
        """Have parameters know their moments, as DeepSpeed does after its first step."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for group, flat in zip(self.optimizer.bit16_groups, self._flats(), strict=True):
            lazy_init_hp_params_optimizer_state(group, flat, self.adamw.state)

    def _put(self, parameter: nn.Parameter, x: Tensor | None = None, moment: str = "") -> None:
        """Write this rank's share of a moment; without one, of the weights, as the model has them."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        if x is None:
            safe_set_full_fp32_param(parameter, parameter.data)
        else:
            safe_set_full_optimizer_state(parameter, x, moment)


class ZeroWithParameters(Zero):
    """Stage 3: parameters are divided too."""

    def _groups(self) -> Sequence[list[nn.Parameter]]:
        groups: Sequence[list[nn.Parameter]] = self.optimizer.fp16_groups
        return groups

    def _flats(self) -> Sequence[Tensor]:
        flats: Sequence[Tensor] = self.optimizer.fp32_partitioned_groups_flat
        return flats

    def _link(self) -> None:
        """They find theirs by themselves."""

    def _put(self, parameter: nn.Parameter, x: Tensor | None = None, moment: str = "") -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        if x is None:
            safe_set_local_fp32_param(parameter, parameter.ds_tensor)  # type: ignore[attr-defined]
        else:
            safe_set_local_optimizer_state(parameter, x, moment)


@contextmanager
def _quietly() -> Iterator[None]:
    """DeepSpeed talks on stdout, which is for data, and torch warns of its calls."""
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    with redirect_stdout(sys.stderr):
        yield
    for handler in logging.getLogger("DeepSpeed").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
