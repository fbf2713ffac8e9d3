"""The engine `vllm_server` without vLLM: what servers are asked, how faults of theirs end, and what is said of them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from support import tiny
from support import tiny_models as models
from support.processes import command
from support.vllm_double import GENERATE, RPC, Body, Double, Fault, Transfers, dropped, serving, status, stuck

import upge
from upge.errors import InputError
from upge.model import ModelError, Policy
from upge.model.lora import adapt
from upge.recipe.schema import Lora
from upge.types import Completion, Context, Request, Sampling
from upge_parts.engines.vllm_http import Waiting
from upge_parts.engines.vllm_server import VllmServer

REQUESTS = [Request("train", 0, f"p{prompt}", sample, (9, 2 + prompt)) for prompt in range(5) for sample in range(3)]
ASKED = Sampling(max_tokens=5)
EXPECTED = [Completion((request.prompt[-1], 1), (-0.5, -0.5), truncated=False) for request in REQUESTS]


@pytest.fixture(scope="module")
def policy() -> Policy:
    return models.policy()


@pytest.fixture
def double() -> Iterator[Double]:
    with serving(models.SIZE) as double:
        yield double


def engine(*doubles: Double, **fields: Any) -> VllmServer:
    return VllmServer(url=tuple(each.url for each in doubles), **{"retries": 2, "backoff": 0, **fields})


def refused(policy: Policy, used: VllmServer) -> str:
    """What is said when the engine opens."""
    with pytest.raises(InputError) as caught, used.open(Context(policy=policy)):
        pass
    return str(caught.value)


def failed(policy: Policy, double: Double, *faults: Fault, **fields: Any) -> str:
    """What is said when the run is under way and the next requests for tokens end so."""
    with engine(double, **fields).open(Context(policy=policy, folder=Path("runs/a"))) as session:
        double.faults[GENERATE] = list(faults)
        with pytest.raises(upge.PartError) as caught:
            session.sample(REQUESTS[:1], ASKED)
    return str(caught.value)


def test_a_session_checks_delivers_samples_and_leaves_nothing(double: Double, policy: Policy, tmp_path: Path) -> None:
    with engine(double, folder=str(tmp_path)).open(Context(seed=5, policy=policy)) as session:
        assert double.paths() == [*[GENERATE] * 3, "/v1/models", RPC, "/reset_prefix_cache"]
        assert session.sample([], ASKED) == []
        assert session.sample(REQUESTS, ASKED) == EXPECTED
        session.sync(policy)
        folders = [Path(body["args"][0]) for path, body in double.asked if path == RPC]
        assert [path.parent.parent for path in folders] == [tmp_path] * 2
        assert folders[0] != folders[1], "files that may still be mapped aren't written over"
    assert list(tmp_path.iterdir()) == []
    assert sorted(each["seed"] for each in double.settings()) == sorted(each.key(5) >> 1 for each in REQUESTS)
    assert double.settings()[0] == {
        "temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": 5, "seed": double.settings()[0]["seed"],
        "stop_token_ids": [1], "ignore_eos": True, "logprobs": 0, "detokenize": False,
    }  # fmt: skip
    assert double.keys == {None}


def test_greedy_log_probs_are_zero_and_what_has_no_stop_token_is_truncated(double: Double, policy: Policy) -> None:
    with engine(double).open(Context(policy=policy)) as session:
        assert session.sample(REQUESTS[:1], Sampling(0.0, max_tokens=5)) == [Completion((2, 1), (0.0, 0.0), False)]
        double.edit = shortened
        assert session.sample(REQUESTS[:1], ASKED) == [Completion((2,), (-0.5,), truncated=True)]


def test_a_server_without_a_tokenizer_is_not_asked_for_stop_strings(double: Double, policy: Policy) -> None:
    with engine(double).open(Context(policy=policy, stop=("b",))) as session:
        session.sample(REQUESTS[:1], Sampling(max_tokens=5, stop=("b",)))
    assert not double.settings()[0].keys() & {"stop", "include_stop_str_in_output"}, "the run cuts there"


def shortened(answer: Body) -> Body:
    choice = answer["choices"][0]
    choice.update(finish_reason="length", token_ids=choice["token_ids"][:1])
    del choice["logprobs"]["content"][1:]
    return answer


def test_prompts_are_dealt_out_with_all_their_samples(policy: Policy) -> None:
    with ExitStack() as stack:
        doubles = [stack.enter_context(serving(models.SIZE)) for _ in range(2)]
        for rank, shares in (0, [{2, 4, 6}, {3, 5}]), (1, [{3, 5}, {2, 4, 6}]):
            for each in doubles:
                each.asked.clear()
            # One process after another stands in for two at once, which would wait for each other.
            with engine(*doubles).open(Context(policy=policy)) as session:
                session.rank = rank  # type: ignore[attr-defined]
                assert session.sample(REQUESTS, ASKED) == EXPECTED
            asked = [[body for path, body in each.asked if path == GENERATE][3:] for each in doubles]
            assert [{body["token_ids"][-1] for body in bodies} for bodies in asked] == shares
            assert [len(bodies) for bodies in asked] == [3 * len(share) for share in shares]
            assert all(each.paths().count(RPC) == 1 for each in doubles)


@pytest.mark.parametrize("fault", [dropped, *map(status, (429, 500, 502, 503, 504))])
def test_a_passing_fault_is_passed_over(double: Double, policy: Policy, fault: Fault) -> None:
    with engine(double).open(Context(policy=policy)) as session:
        before = len(double.asked)
        double.faults[GENERATE] = [fault, fault]
        assert session.sample(REQUESTS[:1], ASKED) == EXPECTED[:1]
        assert double.paths()[before:] == [GENERATE] * 3
        assert double.asked[-1] == double.asked[-2] == double.asked[-3]


def test_a_lasting_fault_ends_the_run_with_how_to_go_on(double: Double, policy: Policy) -> None:
    said = failed(policy, double, *[status(503, "no room")] * 3)
    assert said == (
        f"the vLLM server {double.url}: it doesn't answer {GENERATE}, asked 3 times: 503 no room; start it again with "
        "the same command, and continue with --resume runs/a"
    )
    assert "RemoteProtocolError" in failed(policy, double, *[dropped] * 3)
    assert "asked once" in failed(policy, double, dropped, retries=0)


def test_an_answer_that_does_not_come_is_not_waited_for_again(double: Double, policy: Policy) -> None:
    said = failed(policy, double, stuck, timeout=0.5)
    assert f"{GENERATE} isn't answered within 0.5 s (rollout.engine.timeout)" in said
    assert double.paths()[-1] == GENERATE
    assert len(double.settings()) == 1


def test_one_failure_ends_all_that_is_under_way(double: Double, policy: Policy) -> None:
    many = [Request("train", 0, "p", sample, (9, 2)) for sample in range(100)]
    with engine(double, concurrency=40).open(Context(policy=policy)) as session:
        double.faults[GENERATE] = [status(400)] + [dropped] * 60
        with pytest.raises(upge.PartError):
            session.sample(many, ASKED)
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("upge-vllm")]
    assert len(double.settings()) <= 1 + 40 * 3 + 40


def test_what_the_server_refuses_is_told_at_once(double: Double, policy: Policy) -> None:
    assert "is answered by 400 too long" in failed(policy, double, status(400, "too long"))
    assert len(double.settings()) == 1


EDITS: dict[str, tuple[Callable[[Body], Any], str]] = {
    "no choices": (lambda answer: answer | {"choices": []}, "choices List should have at least 1 item"),
    "two choices": (lambda answer: answer | {"choices": answer["choices"] * 2}, "at most 1 item"),
    "no log-probs": (lambda answer: changed(answer, logprobs=None), "choices.0.logprobs"),
    "no content": (lambda answer: changed(answer, logprobs={"content": None}), "choices.0.logprobs.content"),
    "no tokens": (lambda answer: changed(answer, token_ids=[]), "choices.0.token_ids"),
    "words": (lambda answer: changed(answer, token_ids=["a"]), "choices.0.token_ids.0"),
    "other tokens": (lambda answer: changed(answer, token_ids=[4, 4]), "aren't of its tokens"),
    "fewer log-probs": (lambda answer: changed(answer, token_ids=[2, 1, 1]), "aren't of its tokens"),
    "too many tokens": (lambda answer: changed(answer, token_ids=[2] * 6), "6 tokens, where 5"),
    "aborted": (lambda answer: changed(answer, finish_reason="abort"), "ended with 'abort'"),
    "a list": (lambda answer: [answer], "should be an object"),
}


def changed(answer: Body, **fields: Any) -> Body:
    return answer | {"choices": [answer["choices"][0] | fields]}


@pytest.mark.parametrize("name", EDITS)
def test_an_answer_unlike_vllms_is_named(double: Double, policy: Policy, name: str) -> None:
    double.edit, said = EDITS[name]
    assert said in failed(policy, double)
    assert len(double.settings()) == 1


@pytest.mark.parametrize("text", ["", "{", "null", "<html>", '{"choices": [{"token_ids": [1'])
def test_an_answer_that_is_no_json_is_named(double: Double, policy: Policy, text: str) -> None:
    assert "the answer is none of vLLM 0.32's" in failed(policy, double, status(200, text))


@pytest.mark.parametrize("value", [-9999.0, float("nan"), float("-inf"), float("inf")])
def test_logits_that_are_not_finite_are_the_models_fault(double: Double, policy: Policy, value: float) -> None:
    def broken(answer: Body) -> Body:
        answer["choices"][0]["logprobs"]["content"][1]["logprob"] = value
        return answer

    with engine(double).open(Context(policy=policy)) as session:
        double.edit = broken
        with pytest.raises(FloatingPointError, match="diverged"):
            session.sample(REQUESTS[:1], ASKED)


def test_what_does_not_fit_the_context_is_not_sent(double: Double, policy: Policy) -> None:
    with engine(double).open(Context(policy=policy)) as session:
        with pytest.raises(ModelError, match="exceed vLLM's context of 32"):
            session.sample(REQUESTS, Sampling(max_tokens=31))
        with pytest.raises(InputError, match="temperature 3"):
            session.sample(REQUESTS, Sampling(3.0))
    assert double.settings() == []


def test_a_server_that_is_not_there_is_named_with_what_starts_one(policy: Policy) -> None:
    with serving(models.SIZE) as gone:
        pass
    said = refused(policy, engine(gone))
    assert said.startswith(
        f"rollout.engine.url: the vLLM server {gone.url}: it doesn't answer {GENERATE}, asked 3 times"
    )
    assert "ConnectError" in said
    assert said.endswith("docs/vllm.md has the command that starts one")


@pytest.mark.parametrize(
    ("code", "said"), [(401, "api_key_variable"), (403, "--tokens-only"), (404, "VLLM_SERVER_DEV_MODE=1")]
)
def test_a_server_started_otherwise_is_told_how(double: Double, policy: Policy, code: int, said: str) -> None:
    double.faults[GENERATE] = [status(code)]
    assert said in refused(policy, engine(double))


def test_log_probs_of_another_distribution_are_refused(double: Double, policy: Policy) -> None:
    double.processed = False
    assert "--logprobs-mode processed_logprobs" in refused(policy, engine(double))
    assert RPC not in double.paths()


@pytest.mark.parametrize(("rows", "said"), [(models.SIZE - 1, "smaller"), (models.SIZE + 1, "larger")])
def test_another_vocabulary_is_refused_before_any_weights_are_sent(policy: Policy, rows: int, said: str) -> None:
    with serving(rows) as double:
        assert f"vocabulary is {said} than the policy's of {models.SIZE}" in refused(policy, engine(double))
    assert RPC not in double.paths()
    assert all(token < models.SIZE for path, body in double.asked if path == GENERATE for token in body["token_ids"])


def test_weights_that_do_not_arrive_are_an_error(double: Double, policy: Policy, tmp_path: Path) -> None:
    double.faults[RPC] = [status(500, "this machine sees no folder")]
    assert "this machine sees no folder" in refused(policy, engine(double, folder=str(tmp_path)))
    assert double.paths().count(RPC) == 1, "loading them again would end the same way"
    assert list(tmp_path.iterdir()) == []
    double.forgets = False
    assert "old weights" in refused(policy, engine(double))
    assert "there is no folder" in refused(policy, engine(double, folder=str(tmp_path / "none")))


def test_the_key_is_sent_and_written_nowhere(
    double: Double, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = engine(double, api_key_variable="SECRET_OF_THE_SERVERS")
    monkeypatch.delenv("SECRET_OF_THE_SERVERS", raising=False)
    assert "SECRET_OF_THE_SERVERS isn't set" in refused(policy, used)
    assert double.asked == []
    monkeypatch.setenv("SECRET_OF_THE_SERVERS", "sesame")
    with used.open(Context(policy=policy)):
        assert double.keys == {"Bearer sesame"}
    assert "sesame" not in repr(used) + used.model_dump_json()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("gpu1:8000", "no address"), ("http://", "no address"), ("", "url"), ((), "url"), ("ftp://a", "no address"),
        ("http://me:word@a", "password"), (("http://a", "http://a/"), "twice"),
    ],
)  # fmt: skip
def test_addresses_that_can_not_be_are_refused(url: Any, said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        VllmServer(url=url)


@given(st.floats(0, 10), st.integers(0, 40))
def test_waits_double_up_to_a_minute(backoff: float, retries: int) -> None:
    waited: list[float] = []
    waiting = Waiting(1, 1, retries, backoff, wait=waited.append)
    for attempt in range(retries + 1):
        waiting.before(attempt)
    assert waited == [min(backoff * 2**index, 60) for index in range(retries)]


def test_nccl_needs_a_gpu(double: Double, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert "sends from a GPU" in refused(policy, engine(double, weights="nccl"))


@pytest.fixture
def adapted() -> Policy:
    """With an adapter that changes nothing yet."""
    made = models.policy()
    adapt(made.model, Lora(rank=2, alpha=4), base=None, seed=0)
    return made


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> Transfers:
    made = Transfers()
    modules = {
        "vllm": {}, "vllm.distributed": {},
        "vllm.distributed.weight_transfer": {
            "WeightTransferTrainerFactory": made,
            "ParamMeta": lambda name, dtype, shape: SimpleNamespace(name=name, dtype=dtype, shape=shape),
        },
        "vllm.distributed.weight_transfer.nccl_engine": {"NCCLTrainerInitInfo": SimpleNamespace},
    }  # fmt: skip
    for name, fields in modules.items():
        module = ModuleType(name)
        vars(module).update(fields)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    return made


def test_nccl_sends_the_weights_of_now_and_has_old_prefixes_forgotten(double: Double, transfers: Transfers) -> None:
    first, second = models.policy(), models.policy()
    with torch.no_grad():
        second.model.get_input_embeddings().weight.mul_(2)
    with engine(double, weights="nccl", address="trainer").open(Context(policy=first)) as session:
        assert (transfers.info.master_address, transfers.info.world_size, transfers.info.rank) == ("trainer", 3, 0)
        session.sync(second)
    update = ["/start_weight_update", "/update_weights", "/finish_weight_update", "/reset_prefix_cache"]
    opening = ["/get_world_size", "/init_weight_transfer_engine"]
    assert double.paths() == [*[GENERATE] * 3, *opening, "/v1/models", *update, *update]
    for sent, policy in zip(transfers.sent, (first, second), strict=True):
        named = dict(policy.model.named_parameters())
        assert sent.keys() == named.keys()
        assert all(torch.equal(sent[name], weight) for name, weight in named.items())
    assert transfers.shut == 1


@pytest.mark.needs("peft")
def test_nccl_refuses_an_adapter(double: Double, adapted: Policy, transfers: Transfers) -> None:
    assert "the policy has an adapter; set it to files" in refused(adapted, engine(double, weights="nccl"))
    assert transfers.sent == []


def test_a_transfer_that_breaks_is_not_begun_again(double: Double, transfers: Transfers, policy: Policy) -> None:
    double.faults["/update_weights"] = [dropped]
    assert "/update_weights, asked once" in refused(policy, engine(double, weights="nccl"))
    assert transfers.shut == 1


def recipe(folder: Path, double: Double, **rollout: Any) -> Path:
    used = {"use": "vllm_server", "url": double.url, "retries": 1, "backoff": 0}
    return tiny.recipe(folder, rollout={"engine": used, **rollout}, train={"steps": 3, "save_every": 1})


def test_a_run_that_loses_its_server_fails_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    with serving(7) as double:
        path = recipe(tmp_path, double)
        double.edit = losing(double, after=12 + 48 + 10)  # in the second step
        ended = upge_run(path)
        assert ended.returncode == 1, ended.stderr
        assert f"the vLLM server {double.url}: it doesn't answer" in ended.stderr
        assert f"continue with --resume {tmp_path / 'run'}" in ended.stderr
        assert "Traceback" not in ended.stderr
        double.faults, double.edit = {}, lambda answer: answer
        resumed = upge_run(path, "--resume", str(tmp_path / "run"))
    assert resumed.returncode == 0, resumed.stderr
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert max(steps) == 3


def losing(double: Double, after: int) -> Callable[[Body], Body]:
    """After so many answers every connection breaks."""

    def edit(answer: Body) -> Body:
        if len(double.settings()) > after:
            double.faults[GENERATE] = [dropped] * 10_000
        return answer

    return edit


def upge_run(path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return command("run", str(path), *options)
