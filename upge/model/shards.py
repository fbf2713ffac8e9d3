"""Models whose parameters are divided over ranks, and how they are seen whole again.

They are torch's DTensors (`fully_shard`, FSDP2), or DeepSpeed's at stage 3 of ZeRO: empty parameters with this rank's
part beside them, `ds_tensor`. What gathers talks to all ranks: all of them call it together, in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def divide(model: nn.Module, dtype: torch.dtype | None = None) -> None:
    """Divide a model's parameters over all ranks, layer by layer, in place.

    Args:
        model: a transformers model; the layers are those that it doesn't want split between devices.
        dtype: of the gathered parameters, and so of the passes; None: the parameters' own. Gradients are summed over
            ranks in float32 at least.
    """
    policy = precision(dtype)
    layers = set(getattr(model, "_no_split_modules", None) or ())
    for module in model.modules():
        if type(module).__name__ in layers:
            fully_shard(module, mp_policy=policy)
    fully_shard(model, mp_policy=policy, reshard_after_forward=True)


def precision(dtype: torch.dtype | None) -> MixedPrecisionPolicy:
    """Passes in `dtype`, gradients summed in float32; None: both in the parameters' own type."""
    return MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=None if dtype is None else torch.float32)


SMALL = 2**28
"""Bytes of the weights of a model that is saved as a whole only to see whether it can be."""


def sharded(model: nn.Module) -> bool:
    """Whether a model's parameters are divided over ranks."""
    by_fsdp = any(isinstance(module, FSDPModule) for module in model.modules())
    return by_fsdp or any(map(by_zero, model.parameters()))


def settle(model: nn.Module) -> None:
    """Let go of parameters that a pass without a backward pass has left gathered."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def full(x: Tensor) -> Tensor:
    """A tensor, gathered if it is divided; it carries no gradient."""
    if by_zero(x):
        from deepspeed import zero

        with zero.GatheredParameters([x]):
            return x.detach().clone()
    x = x.detach()
    return x.full_tensor() if isinstance(x, DTensor) else x


def shape(x: Tensor) -> torch.Size:
    """A tensor's, as it is when it is whole."""
    whole: torch.Size = x.ds_shape if by_zero(x) else x.shape  # type: ignore[attr-defined]
    return whole


def by_zero(x: Tensor) -> bool:
    """Whether a parameter is divided as DeepSpeed does it."""
    return hasattr(x, "ds_id")


def whole(tensors: Iterable[tuple[str, Tensor]], *, keep: bool) -> dict[str, Tensor]:
    """Named tensors on the CPU, whole, one after another; empty on ranks that don't `keep` them. Tied ones stay one."""
    state: dict[str, Tensor] = {}
    seen: dict[int, tuple[Tensor, Tensor]] = {}  # with the tensor itself: an id is free again once that is gone
    for name, x in tensors:
        if id(x) not in seen:
            gathered = full(x)
            seen[id(x)] = x, gathered.cpu().contiguous() if keep else torch.empty(0)
        if keep:
            state[name] = seen[id(x)][1]
    return state


def weights(model: nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """A divided model's state dict, whole; empty on ranks that don't `keep` it."""
    settle(model)
    return whole(model.state_dict(keep_vars=True).items(), keep=keep)


def parted(x: Tensor, like: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has whole, divided as `like` is; nothing is sent."""
    if by_zero(like):
        return _parted_by_zero(x, like)
    if not isinstance(like, DTensor):
        return x.to(like.device)
    here = x.to(like.to_local().device)
    return distribute_tensor(here, like.device_mesh, like.placements, src_data_rank=None)


def _parted_by_zero(x: Tensor, like: Any) -> Tensor:
    """The flat share of this rank: equal ones, the last of which ends in zeros."""
    size, rank = like.ds_tensor.numel(), dist.get_rank(like.ds_process_group)
    flat = x.flatten()[size * rank : size * (rank + 1)].to(like.ds_tensor)
    return nn.functional.pad(flat, (0, size - flat.numel()))


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Give a model weights that every rank has whole; tied ones may be there once."""
    settle(model)
    parameters = model.state_dict(keep_vars=True)
    known = {name: x for name, x in state.items() if name in parameters}
    parts = {name: parted(x, parameters[name]) for name, x in known.items() if not by_zero(parameters[name])}
    model.load_state_dict(parts, strict=False)
    for name in known:
        if name not in parts:
            _load_by_zero(parameters[name], known[name])


def _load_by_zero(parameter: Tensor, x: Tensor) -> None:
    """Also what DeepSpeed keeps gathered, for it is small, is then divided anew."""
    from deepspeed import zero

    with zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(x)
