"""The engine `vllm_server` on a real server of vLLM's, a process of its own: draws, weights, and the server's end.

The group `vllm` is optional, as tests/parts/test_vllm.py says.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from support import tiny
from support import tiny_models as models

import upge
from upge.cli.app import reported
from upge.model import Policy
from upge.model.lora import adapt
from upge.recipe.schema import Lora
from upge.train.run import train
from upge.types import Completion, Context, EngineSession, Request, Sampling
from upge_parts.engines.transformers_engine import Transformers
from upge_parts.engines.vllm_nccl import Weights
from upge_parts.engines.vllm_remote import ServerSession
from upge_parts.engines.vllm_server import VllmServer
from upge_parts.engines.vllm_worker import EXTENSION

pytestmark = pytest.mark.vllm

REQUESTS = [Request("train", 0, f"p{index // 4}", index % 4, tuple(range(7, 9 + index // 2))) for index in range(32)]
UPGE = str(Path(sys.executable).parent / "upge")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
GREEDY = Sampling(temperature=0, max_tokens=24)


class Server:
    """A process with its log."""

    def __init__(self, model: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        # What `vllm serve` runs; the command itself asks for a package called vllm, which the build for CPUs isn't.
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--tokens-only", "--dtype", "float32"]
        command += ["--logprobs-mode", "processed_logprobs", "--worker-extension-cls", EXTENSION]
        command += [
            "--enforce-eager",
            "--no-enable-chunked-prefill",
            "--max-num-seqs",
            "16",
            "--kv-cache-memory-bytes",
            str(2**27),
        ]
        settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
        self.process = subprocess.Popen(
            command,
            env=os.environ | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        self.log: list[str] = []
        for line in self.process.stdout:
            self.log.append(line)
            if "Application startup complete" in line:
                break
        else:
            raise AssertionError("".join(self.log[-60:]))
        Thread(target=lambda: self.log.extend(self.process.stdout or ()), daemon=True).start()

    def kill(self) -> None:
        """As a machine does that loses its power."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def serving(model: Path) -> Iterator[Server]:
    server = Server(model)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.kill()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the policy's shape, with other weights."""
    made = policy()
    with torch.no_grad():
        for weight in made.model.parameters():
            weight.mul_(0.5)
    made.save(tmp_path_factory.mktemp("served") / "model")
    return Path(tmp_path_factory.getbasetemp()) / "served0" / "model"


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder) as server:
        yield server


@pytest.fixture(scope="module")
def session(server: Server) -> Iterator[EngineSession]:
    with VllmServer(url=server.url).open(Context(seed=7, policy=policy())) as session:
        yield session


def policy() -> Policy:
    """One that stops after a dozen tokens or so; heads of 32, as vLLM's kernels for CPUs need."""
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}
    model = models.llama(**shape, tie_word_embeddings=True)
    with torch.no_grad():
        model.get_input_embeddings().weight[1] *= 1.5
    return models.policy(model)


def moved(changed: Policy) -> Policy:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in changed.model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return changed


def tokens(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in completions]


def greedy(policy: Policy) -> list[tuple[int, ...]]:
    with Transformers().open(Context(seed=7, policy=policy)) as session:
        return tokens(session.sample(REQUESTS, GREEDY))


def off(policy: Policy, drawn: Sequence[Completion], temperature: float) -> float:
    """The largest difference between the server's log-probs and the policy's, nats."""
    pairs = [(request.prompt, each.tokens) for request, each in zip(REQUESTS, drawn, strict=True)]
    expected = policy.log_probs(pairs, torch.full((len(pairs),), temperature))[0].detach()
    return float((torch.tensor([value for each in drawn for value in each.logp or ()]) - expected).abs().max())


def test_greedy_tokens_are_the_policys_before_and_after_updates(session: EngineSession) -> None:
    first, adapted = policy(), policy()
    before = session.sample(REQUESTS, GREEDY)
    assert tokens(before) == greedy(first)
    assert {each.truncated for each in before} == {True, False}
    changed = moved(first)
    assert session.sample(REQUESTS, GREEDY) == before
    adapt(adapted.model, Lora(rank=4, alpha=8), base=None, seed=0)
    for each in changed, moved(adapted):
        session.sync(each)
        after = tokens(session.sample(REQUESTS, GREEDY))
        assert after == greedy(each)
        differ = sum(ours != theirs for ours, theirs in zip(after, tokens(before), strict=True))
        assert differ > len(REQUESTS) // 2, "no prefix of the old weights was kept"


@pytest.mark.parametrize("asked", [Sampling(max_tokens=24), Sampling(temperature=0.5, max_tokens=24)])
def test_log_probs_are_the_policys_and_draws_repeat_in_any_order(session: EngineSession, asked: Sampling) -> None:
    session.sync(policy())
    drawn = session.sample(REQUESTS, asked)
    assert off(policy(), drawn, asked.temperature) < 1e-3
    assert len({each.tokens for each in drawn}) > 20
    assert tokens(session.sample(REQUESTS[::-1], asked)) == tokens(drawn)[::-1]


def test_weights_of_another_shape_are_refused(server: Server) -> None:
    other = models.policy(models.llama(vocab_size=models.SIZE + 1))
    with (
        pytest.raises(upge.InputError, match=f"smaller than the policy's of {models.SIZE + 1}"),
        VllmServer(url=server.url).open(Context(policy=other)),
    ):
        pass


def test_the_transfer_between_gpus_reads_weights_as_vllm_wants_them() -> None:
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo, NCCLTrainerWeightTransferEngine

    model = policy().model
    weights = Weights(model)
    read = dict(NCCLTrainerWeightTransferEngine._checked_iter(weights, weights.metadata()))
    assert read.keys() == dict(model.named_parameters()).keys()
    assert not any(weight.requires_grad for weight in read.values())
    assert NCCLTrainerInitInfo(master_address="trainer", master_port=1, world_size=3, rank=0).is_sender


def test_two_processes_of_a_run_share_a_server(server: Server, folder: Path, tmp_path: Path) -> None:
    path, drawn = recipe(tmp_path, folder, server), []
    for launcher, run in ([], tmp_path / "one"), (TORCHRUN, tmp_path / "two"):
        command = [*launcher, UPGE, "run", str(path), f"log.folder={run}", "train.steps=1"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        lines = [line for line in logged(run / "completions.jsonl") if line["step"] == 0]
        drawn.append({(line["stream"], line["problem"], line["sample"]): line["tokens"] for line in lines})
    assert drawn[0] == drawn[1]
    assert len(drawn[0]) == 12 + 48, "6 problems twice to evaluate on, and 8 six times to train on"


def test_a_run_trains_and_ends_clearly_when_its_server_dies(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, run = recipe(tmp_path, folder, server), tmp_path / "run"
    train(upge.load(path))
    assert sum(line.get("updates/made", 0) for line in logged(run / "metrics.jsonl")) >= 1
    synced = ServerSession.sync
    calls: list[Policy] = []

    def last(self: ServerSession, policy: Policy) -> None:
        synced(self, policy)
        calls.append(policy)
        if len(calls) == 2:  # at the start, and after the first step
            server.kill()

    monkeypatch.setattr(ServerSession, "sync", last)
    with pytest.raises(SystemExit) as ended, reported():
        train(upge.load(path, [f"log.folder={tmp_path / 'lost'}"]))
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"the vLLM server {server.url}: it doesn't answer" in said
    assert f"continue with --resume {tmp_path / 'lost'}" in said
    assert any((tmp_path / "lost" / "checkpoints").iterdir())


def recipe(folder: Path, model: Path, server: Server) -> Path:
    engine: dict[str, Any] = {"use": "vllm_server", "url": server.url, "retries": 1, "backoff": 0}
    blocks = {"rollout": {"engine": engine, "max_tokens": 8}, "train": {"steps": 2, "save_every": 1}}
    path = tiny.recipe(folder, **blocks)
    whole = json.loads(path.read_text())
    path.write_text(json.dumps(whole | {"model": {"path": str(model)}}))
    return path


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
