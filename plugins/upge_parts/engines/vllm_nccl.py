"""Weights from the trainer's GPU to vLLM servers' GPUs, by NCCL: vLLM's own weight transfer, asked over HTTP."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from accelerate import PartialState
from pydantic import BaseModel
from torch import Tensor

from upge import Context, InputError, Policy
from upge_parts.engines.vllm_http import Done, Server, forget


class WorldSize(BaseModel):
    """What `/get_world_size` answers."""

    world_size: int


class Weights:
    """What vLLM's transfer reads a model's weights from: their names and shapes, and then themselves."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def metadata(self) -> list[Any]:
        """Name, dtype and shape of each weight; tied ones once."""
        from vllm.distributed.weight_transfer import ParamMeta

        return [ParamMeta(name, weight.dtype, tuple(weight.shape)) for name, weight in self]

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, weight.detach()) for name, weight in self.model.named_parameters())


class Control:
    """vLLM's `VLLMWeightSyncClient`, with this engine's time-outs, key and errors.

    Nothing is asked twice: the servers' part of a transfer that has begun can't begin again.
    """

    def __init__(self, server: Server) -> None:
        self.server = server

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._ask("/init_weight_transfer_engine", {"init_info": init_info})

    def shutdown_weight_transfer_engine(self) -> None:
        self._ask("/shutdown_weight_transfer_engine", {})

    def start_weight_update(self) -> None:
        self._ask("/start_weight_update", {})

    def update_weights(self, update_info: dict[str, Any] | list[dict[str, Any]]) -> None:
        self._ask("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._ask("/finish_weight_update", {"weight_version": weight_version})

    def _ask(self, path: str, body: dict[str, Any]) -> None:
        self.server.ask(path, Done, body, again=None)


class Broadcast:
    """The first rank sends its policy's weights to one server after another; the other ranks wait.

    Args:
        transfers: each server with the trainer's side of vLLM's transfer to it; none on other ranks.
        weights: what all transfers read.
    """

    def __init__(self, transfers: Sequence[tuple[Server, Any]], weights: Weights, world: int) -> None:
        self.transfers, self.weights, self.world = transfers, weights, world

    def deliver(self, policy: Policy) -> None:
        """Send the weights of `policy`, as its parameters are named, and have what was cached forgotten."""
        self._wait()
        self.weights.model = policy.model
        for server, transfer in self.transfers:
            transfer.send_weights()
            forget(server)
        self._wait()

    def _wait(self) -> None:
        if self.world > 1:
            PartialState().wait_for_everyone()


@contextmanager
def opened(servers: Sequence[Server], context: Context, address: str | None) -> Iterator[Broadcast]:
    """A broadcast to the servers, each of which joins a group with this process's GPU.

    Raises InputError: there is no GPU, or no vLLM to send with; the policy has an adapter.
    """
    assert context.policy is not None
    if any("lora_" in name for name, _ in context.policy.model.named_parameters()):
        raise InputError(
            "rollout.engine.weights: nccl sends whole weights, and the policy has an adapter; set it to files"
        )
    if context.policy.sharded:
        raise InputError(
            "rollout.engine.weights: nccl sends one rank's weights, and the policy is divided (FSDP, ZeRO 3); "
            "set it to files"
        )
    if not torch.cuda.is_available():
        raise InputError("rollout.engine.weights: nccl sends from a GPU, and there is none here; set it to files")
    weights, transfers = Weights(context.policy.model), []
    with ExitStack() as stack:
        for server in servers if context.rank == 0 else ():
            transfer = _joined(server, weights, address or socket.gethostname())
            stack.callback(transfer.shutdown)
            transfers.append((server, transfer))
        yield Broadcast(transfers, weights, context.world)


def _joined(server: Server, weights: Weights, address: str) -> Any:
    try:
        from vllm.distributed.weight_transfer import WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    except ImportError as error:
        raise InputError(f"rollout.engine.weights: nccl sends with vLLM ({error}): pip install 'upge[vllm]'") from error
    size = 1 + server.ask("/get_world_size", WorldSize).world_size
    info = NCCLTrainerInitInfo(master_address=address, master_port=_free_port(), world_size=size, rank=0)
    return WeightTransferTrainerFactory.trainer_init(info, client=Control(server), source=weights)


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("", 0))
        return int(listening.getsockname()[1])
