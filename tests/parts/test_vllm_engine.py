"""The vLLM engine without vLLM: what becomes of requests and answers, and what is said where it can't work."""

from __future__ import annotations

import builtins
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models as models

import upge
from upge.errors import InputError
from upge.model import ModelError, Policy
from upge.types import Context, Request, Sampling
from upge_parts.engines.vllm_engine import Vllm
from upge_parts.engines.vllm_session import check, completion, parameters

REQUEST = Request("train", 3, "p", 2, (9, 8, 7))


class StandIn:
    """In vLLM's place: it keeps what it is called with, and answers each prompt with its last token and a stop."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.environment: dict[str, str] = {}
        self.model_config = SimpleNamespace(max_model_len=32)
        self.llm_engine = SimpleNamespace(engine_core=self)
        self.answer: Callable[[int], list[int]] = lambda last: [last, 1]
        self.keeps_prefixes = False

    def LLM(self, **arguments: Any) -> StandIn:
        self.calls.append(("open", arguments))
        self.environment = dict(os.environ)
        assert (Path(arguments["model"]) / "model.safetensors").exists()
        return self

    def generate(self, prompts: list[Any], settings: list[Any], *, use_tqdm: bool) -> list[Any]:
        self.calls.append(("generate", settings))
        answers = [self.answer(prompt["prompt_token_ids"][-1]) for prompt in prompts]
        return [SimpleNamespace(outputs=[said(tokens, -0.5)]) for tokens in answers]

    def collective_rpc(self, method: str, args: tuple[str]) -> None:
        assert (Path(args[0]) / "model.safetensors").exists()
        self.calls.append((method, args[0]))

    def reset_prefix_cache(self) -> bool:
        self.calls.append(("reset_prefix_cache", None))
        return not self.keeps_prefixes

    def sleep(self, level: int) -> None:
        self.calls.append(("sleep", level))

    def wake_up(self) -> None:
        self.calls.append(("wake_up", None))

    def shutdown(self) -> None:
        self.calls.append(("shutdown", None))

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.calls]


def said(tokens: list[int], logp: float) -> Any:
    other = {99: SimpleNamespace(logprob=-0.1)}
    return SimpleNamespace(
        token_ids=tokens, logprobs=[other | {token: SimpleNamespace(logprob=logp)} for token in tokens]
    )


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in, module = StandIn(), ModuleType("vllm")
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    module.LLM = stand_in.LLM  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)
    return stand_in


@pytest.fixture
def policy() -> Policy:
    return models.policy()


def test_a_request_becomes_parameters_that_nothing_else_has_a_say_in(stand_in: StandIn) -> None:
    made = vars(parameters(REQUEST, Sampling(0.7, 0.9, 40, max_tokens=11), 5, (1, 3)))
    assert made == {
        "temperature": 0.7, "top_p": 0.9, "top_k": 40, "max_tokens": 11, "seed": REQUEST.key(5) >> 1,
        "stop_token_ids": [1, 3], "ignore_eos": True, "logprobs": 0, "detokenize": False,
    }  # fmt: skip


def test_stop_strings_are_looked_for_by_vllm_too_in_the_text_that_the_run_reads(stand_in: StandIn) -> None:
    made = vars(parameters(REQUEST, Sampling(stop=("</a>",)), 5, (1,)))
    assert (made["stop"], made["detokenize"], made["include_stop_str_in_output"]) == (["</a>"], True, True)
    assert not made["skip_special_tokens"]
    output = said([5, 6], -0.5)
    output.stop_reason = "</a>"
    assert not completion(output, Sampling(stop=("</a>",)), (1,)).truncated


@pytest.mark.parametrize("stop", [(), ("</a>",)])
def test_only_for_stop_strings_vllm_opens_a_tokenizer(stand_in: StandIn, policy: Policy, stop: tuple[str, ...]) -> None:
    with Vllm().open(Context(policy=policy, stop=stop)):
        assert stand_in.calls[0][1]["skip_tokenizer_init"] == (not stop)


coordinates = st.tuples(st.sampled_from(["train", "eval/test"]), st.integers(0, 3), st.text(), st.integers(0, 3))


@given(st.lists(st.tuples(st.integers(0, 2), coordinates), min_size=2, max_size=8, unique=True))
def test_seeds_fit_vllm_and_differ_wherever_coordinates_do(wanted: list[tuple[int, Any]]) -> None:
    module = ModuleType("vllm")
    module.SamplingParams = SimpleNamespace  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "vllm", module)
        seeds = [parameters(Request(*where, (1,)), Sampling(), seed, ()).seed for seed, where in wanted]
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert len(set(seeds)) == len(seeds)


def test_an_answer_becomes_a_completion() -> None:
    stopped, cut = (
        completion(said([5, 6, 3], -0.5), Sampling(), (1, 3)),
        completion(said([5, 6], -0.5), Sampling(), (1,)),
    )
    assert stopped == upge.Completion((5, 6, 3), (-0.5, -0.5, -0.5), truncated=False)
    assert cut == upge.Completion((5, 6), (-0.5, -0.5), truncated=True)
    assert completion(said([5, 1], -0.5), Sampling(temperature=0), (1,)).logp == (0.0, 0.0)
    for temperature in (0.0, 1.0):
        with pytest.raises(FloatingPointError, match="diverged"):
            completion(said([5, 1], float("nan")), Sampling(temperature), (1,))


def test_what_vllm_would_sample_otherwise_is_refused() -> None:
    for temperature in (0.0, 0.01, 1.0, 2.0):
        check([REQUEST], Sampling(temperature, max_tokens=5), 8)
    for temperature in (0.009, 2.01):
        with pytest.raises(InputError, match="vLLM samples at 0"):
            check([REQUEST], Sampling(temperature, max_tokens=5), 8)
    with pytest.raises(ModelError, match=r"problem p: a prompt of 3 tokens and rollout\.max_tokens 6 exceed .* of 8"):
        check([REQUEST], Sampling(max_tokens=6), 8)
    with pytest.raises(ModelError, match="no tokens"):
        check([Request("train", 0, "p", 0, ())], Sampling(), 8)


def test_a_session_samples_syncs_and_leaves_nothing(stand_in: StandIn, policy: Policy) -> None:
    with Vllm(kv_cache=0.5, max_num_seqs=3).open(Context(seed=5, policy=policy)) as session:
        opened = stand_in.calls[0][1]
        folder = Path(opened["model"]).parent
        assert session.sample([], Sampling()) == []
        answers = session.sample([REQUEST, Request("train", 3, "p", 1, (9, 4))], Sampling(max_tokens=5))
        assert [answer.tokens for answer in answers] == [(7, 1), (4, 1)]
        session.sync(policy)
        session.sync(policy)
        assert list(folder.iterdir()) == [], "no copy of the weights stays for longer than it is needed"
    assert stand_in.names == [
        "open",
        "generate",
        "generate",
        *(["take_over", "reset_prefix_cache"] * 2),
        "shutdown",
    ]
    assert stand_in.calls[3][1] != stand_in.calls[5][1], "files that may still be mapped aren't written over"
    assert not folder.exists()
    assert opened["kv_cache_memory_bytes"] == 2**29
    assert opened["block_size"] == 32, "vLLM's own default on CPUs is more than a short prompt has"
    assert opened["dtype"] == "float32", "the policy's; vLLM's own default would halve it"
    assert (opened["max_num_seqs"], opened["max_model_len"], opened["enable_sleep_mode"]) == (3, None, False)
    assert (opened["generation_config"], opened["logprobs_mode"]) == ("vllm", "processed_logprobs")


def test_a_new_policy_brings_its_own_stop_tokens(stand_in: StandIn, policy: Policy) -> None:
    other = models.llama()
    other.generation_config.eos_token_id = [3]
    with Vllm().open(Context(policy=policy)) as session:
        session.sync(models.policy(other))
        session.sample([REQUEST], Sampling(max_tokens=5))
    assert stand_in.calls[-2][1][0].stop_token_ids == [1, 3]


def test_a_session_sleeps_between_calls(stand_in: StandIn, policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    with Vllm(sleep=True).open(Context(policy=policy)) as session:
        session.sample([REQUEST], Sampling(max_tokens=5))
        session.sync(policy)
        session.sample([REQUEST], Sampling(max_tokens=5))
        session.sample([REQUEST], Sampling(max_tokens=5))
    expected = ["open", "generate", "generate", "sleep", "wake_up", "take_over", "reset_prefix_cache"]
    assert stand_in.names == [*expected, "generate", "sleep", "wake_up", "generate", "sleep", "shutdown"]


def test_cached_prefixes_of_old_weights_are_an_error(stand_in: StandIn, policy: Policy) -> None:
    stand_in.keeps_prefixes = True
    with Vllm().open(Context(policy=policy)) as session, pytest.raises(RuntimeError, match="old weights"):
        session.sync(policy)


def test_its_processes_do_not_see_who_launched_this_one(
    stand_in: StandIn, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    with Vllm().open(Context(policy=policy)):
        assert not {"RANK", "TORCHELASTIC_USE_AGENT_STORE", "MASTER_ADDR"} & stand_in.environment.keys()
        assert stand_in.environment["VLLM_LOGGING_STREAM"] == "ext://sys.stderr"
        assert os.environ["RANK"] == "1"
        assert "MASTER_ADDR" not in os.environ


def test_a_model_that_vllm_refuses_is_the_users_error(stand_in: StandIn, policy: Policy) -> None:
    def refuse(last: int) -> list[int]:
        raise ValueError("no kernel for this head size")

    stand_in.answer = refuse
    said = r"rollout\.engine: vLLM doesn't run .*: no kernel for this head size"
    with pytest.raises(InputError, match=said), Vllm().open(Context(policy=policy)):
        pass
    assert stand_in.names == ["open", "generate", "shutdown"]


def test_settings_that_can_not_be_honoured_are_refused(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with (
        pytest.raises(InputError, match=r"rollout\.engine\.sleep: .* no GPU"),
        Vllm(sleep=True).open(Context(policy=policy)),
    ):
        pass
    with (
        pytest.raises(InputError, match="run of 2 processes"),
        Vllm(tensor_parallel_size=2).open(Context(policy=policy, world=2)),
    ):
        pass
    with pytest.raises(ValueError, match="no policy"), Vllm().open(Context()):
        pass


def test_a_missing_vllm_is_named_with_its_command(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *rest: Any, **named: Any) -> Any:
        if name == "vllm":
            raise ModuleNotFoundError("No module named 'vllm'")
        return real(name, *rest, **named)

    monkeypatch.delitem(sys.modules, "vllm", raising=False)
    monkeypatch.setattr(builtins, "__import__", importing)
    said = r"rollout\.engine: .*No module named 'vllm'.*pip install 'upge\[vllm\]'"
    with pytest.raises(InputError, match=said), Vllm().open(Context(policy=policy)):
        pass
