"""The vLLM engine on a real vLLM: what it draws, how likely it says that was, and whose weights it draws with.

The group `vllm` is optional: `bash tests/vllm_v.sh FOLDER`, then `FOLDER/bin/pytest -m vllm`. It runs on the CPU.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML
from support import tiny
from support import tiny_models as models
from transformers import GenerationConfig

import upge
from upge.errors import InputError
from upge.model import Policy, load
from upge.model.lora import adapt
from upge.recipe.schema import Lora
from upge.train.run import train
from upge.types import Completion, Context, EngineSession, Problem, Request, Sampling
from upge_parts.engines.transformers_engine import Transformers
from upge_parts.engines.vllm_engine import Vllm

pytestmark = pytest.mark.vllm

HEADS = {"hidden_size": 64, "num_attention_heads": 2}
"""vLLM's kernels for CPUs take no heads below 32."""
SETTINGS: dict[str, Any] = {"kv_cache": 0.1, "max_num_seqs": 16, "enforce_eager": True}

REQUESTS = [
    Request("train", 0, f"p{index // 4}", index % 4, tuple(range(7 + index // 4, 9 + index // 2)))
    for index in range(32)
]


@pytest.fixture(scope="module")
def policy() -> Policy:
    """One that stops after a dozen tokens or so, and whose generation defaults would change every draw."""
    model = models.llama(**HEADS, num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=True)
    with torch.no_grad():
        model.get_input_embeddings().weight[[1, 3]] *= 1.5
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.1, top_k=2, top_p=0.3, repetition_penalty=3.0, eos_token_id=[1, 3]
    )
    return models.policy(model)


@pytest.fixture(scope="module")
def session(policy: Policy) -> Iterator[EngineSession]:
    with Vllm(**SETTINGS).open(Context(seed=7, policy=policy)) as session:
        yield session


@pytest.fixture
def synced(session: EngineSession, policy: Policy) -> EngineSession:
    """The session with the policy's weights of now."""
    session.sync(policy)
    return session


def tokens(completions: Sequence[Completion]) -> list[tuple[int, ...]]:
    return [completion.tokens for completion in completions]


def reported(completions: Sequence[Completion]) -> torch.Tensor:
    return torch.tensor([value for completion in completions for value in completion.logp or ()])


def expected(policy: Policy, completions: Sequence[Completion], temperature: float) -> torch.Tensor:
    pairs = [(request.prompt, each.tokens) for request, each in zip(REQUESTS, completions, strict=True)]
    return policy.log_probs(pairs, torch.full((len(pairs),), temperature))[0].detach()


def greedy(policy: Policy) -> list[tuple[int, ...]]:
    with Transformers().open(Context(seed=7, policy=policy)) as session:
        return tokens(session.sample(REQUESTS, Sampling(temperature=0, max_tokens=24)))


def test_greedy_tokens_are_the_policys_before_and_after_an_update(session: EngineSession, policy: Policy) -> None:
    asked = Sampling(temperature=0, max_tokens=24)
    before = session.sample(REQUESTS, asked)
    assert tokens(before) == greedy(policy)
    assert {each.truncated for each in before} == {True, False}
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.mul_(1 + 0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    assert session.sample(REQUESTS, asked) == before
    session.sync(policy)
    after = session.sample(REQUESTS, asked)
    assert tokens(after) == greedy(policy)
    changed = sum(ours != theirs for ours, theirs in zip(tokens(after), tokens(before), strict=True))
    assert changed > len(REQUESTS) // 2, "no prefix of the old weights was kept"


@pytest.mark.needs("peft")
def test_an_adapter_is_in_the_weights_that_the_engine_takes_over(session: EngineSession, policy: Policy) -> None:
    adapted, asked = Policy(copy.deepcopy(policy.model), policy.tokenizer), Sampling(temperature=0, max_tokens=24)
    session.sync(policy)
    before = tokens(session.sample(REQUESTS, asked))
    adapt(adapted.model, Lora(rank=4, alpha=8), base=None, seed=0)
    session.sync(adapted)
    assert tokens(session.sample(REQUESTS, asked)) == before, "a new adapter changes nothing"
    with torch.no_grad():
        for weight in adapted.model.parameters():
            if weight.requires_grad:
                weight.add_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    session.sync(adapted)
    after = tokens(session.sample(REQUESTS, asked))
    assert after == greedy(adapted)
    assert sum(ours != theirs for ours, theirs in zip(after, before, strict=True)) > len(REQUESTS) // 2


@pytest.mark.parametrize("asked", [Sampling(max_tokens=24), Sampling(temperature=0.6, max_tokens=24)])
def test_log_probs_are_the_policys(synced: EngineSession, policy: Policy, asked: Sampling) -> None:
    drawn = synced.sample(REQUESTS, asked)
    torch.testing.assert_close(reported(drawn), expected(policy, drawn, asked.temperature), atol=1e-3, rtol=0)
    assert len({each.tokens for each in drawn}) > 24


def test_a_cut_distribution_is_renormalized(synced: EngineSession, policy: Policy) -> None:
    drawn = synced.sample(REQUESTS, Sampling(top_k=3, max_tokens=24))
    assert reported(drawn).max() <= 0
    assert (reported(drawn) - expected(policy, drawn, 1.0)).min() > -1e-3
    assert (reported(drawn) - expected(policy, drawn, 1.0)).mean() > 0.1


def test_responses_end_at_the_policys_stop_tokens_or_are_truncated(synced: EngineSession, policy: Policy) -> None:
    drawn = synced.sample(REQUESTS, Sampling(max_tokens=24))
    assert {each.tokens[-1] for each in drawn if not each.truncated} == {1, 3} == set(policy.stop_ids)
    for each in drawn:
        assert not set(each.tokens[:-1]) & set(policy.stop_ids)
        assert each.truncated == (each.tokens[-1] not in policy.stop_ids)
        assert len(each.tokens) == 24 or not each.truncated


def test_a_stop_string_ends_a_response_where_the_run_cuts_it(policy: Policy) -> None:
    whole, decoder = greedy(policy), policy.decoder
    stop = (decoder.text(whole[0])[1:3],)
    with Vllm(**SETTINGS).open(Context(seed=7, policy=policy, stop=stop)) as session:
        cut = session.sample(REQUESTS, Sampling(temperature=0, max_tokens=24, stop=stop))
    ends = [decoder.end(each, stop) for each in whole]
    assert any(end is not None and end < len(each) for end, each in zip(ends, whole, strict=True))
    assert tokens(cut) == [each[:end] for each, end in zip(whole, ends, strict=True)]
    assert not any(each.truncated for each, end in zip(cut, ends, strict=True) if end is not None)


def test_a_draw_depends_on_its_coordinates_alone(synced: EngineSession) -> None:
    asked = Sampling(max_tokens=24)
    drawn = tokens(synced.sample(REQUESTS, asked))
    assert tokens(synced.sample(REQUESTS, asked)) == drawn
    assert tokens(synced.sample(REQUESTS[::-1], asked)) == drawn[::-1]
    assert tokens(synced.sample(REQUESTS[5:6], asked)) == drawn[5:6]
    one = REQUESTS[5]
    others = [
        Request("eval/test", 0, one.problem, one.sample, one.prompt), Request("train", 1, one.problem, 1, one.prompt),
        Request("train", 0, "other", one.sample, one.prompt), Request("train", 0, one.problem, 7, one.prompt),
    ]  # fmt: skip
    assert len({drawn[5], *tokens(synced.sample(others, asked))}) == 5


def recipe(folder: Path, **blocks: Any) -> Path:
    engine = {"use": "vllm", **SETTINGS}
    return tiny.recipe(folder, tiny.LLAMA | HEADS, rollout={"engine": engine}, train={"steps": 2}, **blocks)


UPGE = str(Path(sys.executable).parent / "upge")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]


def test_two_processes_sample_what_one_does_and_keep_standard_output_clean(tmp_path: Path) -> None:
    path, drawn = recipe(tmp_path), []
    for launcher, folder in ([], tmp_path / "one"), (TORCHRUN, tmp_path / "two"):
        command = [*launcher, UPGE, "run", str(path), f"log.folder={folder}"]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr
        assert "vllm" not in finished.stdout.lower()
        assert sum(line.get("updates/made", 0) for line in logged(folder / "metrics.jsonl")) >= 1
        lines = logged(folder / "completions.jsonl")
        assert {told(line) for line in lines} == set(STREAMS)
        drawn.append({(*told(line), line["problem"], line["sample"]): line["tokens"] for line in lines})
    # From the first update on the weights are the same but for rounding, and a draw may fall to another token.
    one, two = ({key: said for key, said in run.items() if key[1] == 0} for run in drawn)
    assert one == two
    assert drawn[0].keys() == drawn[1].keys()


STREAMS = [("eval/test", 0), ("train", 0), ("train", 1), ("eval/test", 2)]


def logged(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_corrected_run_ends_with_completions_of_the_model_that_it_saved(tmp_path: Path) -> None:
    shipped = YAML(typ="safe").load(Path(__file__).parents[2] / "recipes" / "grpo_tis.yaml")
    folder = train(upge.load(recipe(tmp_path, estimator=shipped["estimator"], optimizer={"lr": 0.03})))
    trained = load(str(folder))
    asked = {line["id"]: line["prompt"] for line in logged(tmp_path / "problems.jsonl")}
    lines = logged(folder / "completions.jsonl")
    first, last = (
        off(trained, asked, [line for line in lines if told(line) == ("eval/test", step)]) for step in (0, 2)
    )
    assert last < 1e-3 < first, "the engine drew with the trained weights at the end, and with others at the start"


def told(line: dict[str, Any]) -> tuple[str, int]:
    return line["stream"], line["step"]


def off(policy: Policy, asked: dict[str, str], lines: Sequence[dict[str, Any]]) -> float:
    """The largest difference between the engine's log-probs and the policy's, nats."""
    assert lines
    ids = policy.templater()
    prompts = [ids.prompt(Problem(line["problem"], asked[line["problem"]], "")) for line in lines]
    pairs = [(prompt, line["tokens"]) for prompt, line in zip(prompts, lines, strict=True)]
    logp = policy.log_probs(pairs, torch.ones(len(pairs)))[0].detach()
    return float((logp - torch.tensor([value for line in lines for value in line["logp"]])).abs().max())


def test_a_model_that_its_kernels_do_not_take_is_the_users_error() -> None:
    small = models.policy(models.llama())
    said, engine = r"rollout\.engine: vLLM doesn't run this model", Vllm(**SETTINGS)
    with pytest.raises(InputError, match=said), engine.open(Context(policy=small)):
        pass
