"""The transformers engine: what it draws, how likely it says that was, and that nothing else has a say in it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models as models
from torch import Tensor
from transformers import GenerationConfig, MambaConfig, MambaForCausalLM, PreTrainedModel

from upge.model import ModelError, Policy
from upge.types import Completion, Context, Request, Sampling
from upge_parts.engines.decoding import decodable
from upge_parts.engines.generating import Generating
from upge_parts.engines.keyed import draw, uniforms
from upge_parts.engines.transformers_engine import Transformers


def requests(count: int, *, stream: str = "train", step: int = 0) -> list[Request]:
    """Prompts of 1 to 12 tokens; four samples each."""
    drawn = np.random.default_rng(0).integers(7, models.SIZE, size=(count, 12)).tolist()
    prompts = [tuple(drawn[index // 4][: 1 + (index // 4 * 5) % 12]) for index in range(count)]
    return [Request(stream, step, f"p{i // 4}", i % 4, prompt) for i, prompt in enumerate(prompts)]


def sample(
    policy: Policy, wanted: Sequence[Request], sampling: Sampling, *, batch_size: int = 64, seed: int = 7
) -> list[Completion]:
    with Transformers(batch_size=batch_size).open(Context(seed=seed, policy=policy)) as session:
        session.sync(policy)
        return session.sample(wanted, sampling)


def stopping(model: PreTrainedModel) -> Policy:
    """A policy that stops after a dozen tokens or so, at either of two tokens."""
    model.generation_config.eos_token_id = [3]
    policy = models.policy(model)
    head = model.get_output_embeddings()
    head.bias = torch.nn.Parameter(torch.zeros(models.SIZE))
    with torch.no_grad():
        head.bias[[1, 3]] = 2.5
    return policy


MODELS = [models.llama, models.gpt2, models.gemma2]


@pytest.mark.parametrize("make", MODELS)
def test_completions_do_not_depend_on_their_batch(make: object) -> None:
    policy, wanted, sampling = stopping(make()), requests(48), Sampling(max_tokens=20)
    whole = sample(policy, wanted, sampling)
    assert len({completion.tokens for completion in whole}) > 40
    assert {len(completion.tokens) for completion in whole} >= {1, 20}, "some stop at once, some never"
    for batch_size in (1, 3):
        assert [c.tokens for c in sample(policy, wanted, sampling, batch_size=batch_size)] == [c.tokens for c in whole]
    assert [c.tokens for c in sample(policy, wanted[::-1], sampling)] == [c.tokens for c in whole[::-1]]
    assert [c.tokens for c in sample(policy, wanted[5:6], sampling)] == [whole[5].tokens]


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_log_probs_are_the_policys(make: object, temperature: float) -> None:
    policy, wanted = stopping(make()), requests(24)
    completions = sample(policy, wanted, Sampling(temperature=temperature, max_tokens=16))
    pairs = [(request.prompt, completion.tokens) for request, completion in zip(wanted, completions, strict=True)]
    expected, _ = policy.log_probs(pairs, torch.full((24,), temperature))
    reported = torch.tensor([value for completion in completions for value in completion.logp or ()])
    torch.testing.assert_close(reported, expected.detach(), atol=1e-5, rtol=0)
    assert reported.max() <= 0


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
@pytest.mark.parametrize("batch_size", [1, 7, 48])
def test_the_loop_draws_what_generate_draws_in_float64(
    make: object, batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, wanted, sampling = stopping(make()), requests(48), Sampling(max_tokens=20)
    policy.model.double()
    monkeypatch.setattr("upge_parts.engines.decoding._PREFILL", 20)
    ours = sample(policy, wanted, sampling, batch_size=batch_size)
    monkeypatch.setattr("upge_parts.engines.generating.decodable", lambda _: False)
    for one, other in zip(ours, sample(policy, wanted, sampling), strict=True):
        assert (one.tokens, one.truncated) == (other.tokens, other.truncated)
        assert one.logp == pytest.approx(other.logp, abs=1e-5)


@pytest.mark.parametrize("make", [models.llama, models.gpt2])
def test_a_prompt_is_run_once_for_all_its_samples(make: object) -> None:
    policy, widths = models.policy(make()), []
    policy.model.register_forward_pre_hook(
        lambda _, __, given: widths.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    sample(policy, [Request("train", 0, "p", index, (9, 8, 7, 6)) for index in range(5)], Sampling(max_tokens=3))
    assert widths[0] == (1, 3)
    assert all(width == 1 for _, width in widths[1:])


def test_responses_that_outgrow_their_buffers_go_on() -> None:
    policy, wanted = models.policy(models.llama(max_position_embeddings=512, eos_token_id=None)), requests(8)
    policy.stop_ids = ()
    sampling = Sampling(max_tokens=300)
    together, alone = sample(policy, wanted, sampling), sample(policy, wanted[4:5], sampling)
    assert {len(completion.tokens) for completion in together} == {300}
    assert together[4].tokens == alone[0].tokens


def test_models_with_other_state_than_all_keys_and_values_are_left_to_generate() -> None:
    mamba = MambaForCausalLM(
        MambaConfig(vocab_size=models.SIZE, hidden_size=16, state_size=4, num_hidden_layers=1, eos_token_id=1)
    )
    assert decodable(models.llama())
    assert decodable(models.gpt2())
    assert not decodable(models.gemma2()), "sliding windows"
    assert not decodable(mamba), "a state space"
    completions = sample(models.policy(mamba), requests(4)[:1] * 2, Sampling(max_tokens=4))
    assert completions[0] == completions[1]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_large_vocabulary_is_drawn_from_as_a_small_one_is(temperature: float) -> None:
    logits = torch.randn(64, 10_001, generator=torch.Generator().manual_seed(3)) * 3
    logits[:, 128:512] = -torch.inf
    noise = torch.linspace(0, 1 - 2.0**-52, 64, dtype=torch.float64)
    tokens, logp = draw(logits, noise, Sampling(temperature))
    probability = torch.softmax(logits.double() / temperature, -1)
    cumulative = probability.cumsum(-1)
    chosen = tokens[:, None]
    assert (cumulative.gather(1, chosen)[:, 0] >= noise - 1e-5).all()
    assert ((cumulative - probability).gather(1, chosen)[:, 0] <= noise + 1e-5).all()
    torch.testing.assert_close(logp, probability.gather(1, chosen)[:, 0].log(), atol=1e-5, rtol=0)
    assert torch.equal(tokens[5:6], draw(logits[5:6], noise[5:6], Sampling(temperature))[0])
    logits[0, 9000] = torch.nan
    assert draw(logits, noise, Sampling(temperature))[1].isnan().tolist() == [True] + [False] * 63


def test_responses_end_at_the_first_stop_token_or_are_truncated() -> None:
    policy = stopping(models.llama())
    completions = sample(policy, requests(64), Sampling(max_tokens=12))
    ends = {completion.tokens[-1] for completion in completions if not completion.truncated}
    assert ends == {1, 3}, "both stop tokens, and no other"
    for completion in completions:
        assert not set(completion.tokens[:-1]) & set(policy.stop_ids)
        assert completion.truncated == (completion.tokens[-1] not in policy.stop_ids)
        assert len(completion.tokens) == 12 or not completion.truncated
        assert completion.logp is not None
        assert len(completion.logp) == len(completion.tokens)


def test_a_shorter_limit_gives_the_beginning_of_the_same_completion() -> None:
    policy, wanted = stopping(models.llama()), requests(16)
    longer, shorter = (sample(policy, wanted, Sampling(max_tokens=limit)) for limit in (20, 5))
    assert [c.tokens[:5] for c in longer] == [c.tokens for c in shorter]


def test_every_coordinate_of_a_request_changes_its_noise() -> None:
    policy = models.policy()
    base = Request("train", 0, "p", 0, (9, 8, 7))
    others = [
        Request("eval/test", 0, "p", 0, (9, 8, 7)), Request("train", 1, "p", 0, (9, 8, 7)),
        Request("train", 0, "q", 0, (9, 8, 7)), Request("train", 0, "p", 1, (9, 8, 7)),
    ]  # fmt: skip
    sampling = Sampling(max_tokens=12)
    drawn = [completion.tokens for completion in sample(policy, [base, base, *others], sampling)]
    drawn += [sample(policy, [base], sampling, seed=8)[0].tokens]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 6


def test_sampling_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    sample(models.policy(), requests(4), Sampling(max_tokens=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_models_generation_defaults_have_no_say() -> None:
    policy, wanted, sampling = models.policy(), requests(32), Sampling(max_tokens=10)
    clean = sample(policy, wanted, sampling)
    poison = GenerationConfig(
        do_sample=True, top_k=1, top_p=0.1, min_p=0.5, temperature=0.01, repetition_penalty=5.0, typical_p=0.2,
        no_repeat_ngram_size=1, bad_words_ids=[[20], [21]], suppress_tokens=list(range(10, 40)),
        begin_suppress_tokens=[50], forced_eos_token_id=1, forced_bos_token_id=60, min_new_tokens=9,
        num_return_sequences=2, max_length=3, sequence_bias={(30,): 50.0}, guidance_scale=3.0, epsilon_cutoff=0.3,
        eta_cutoff=0.3, renormalize_logits=True, exponential_decay_length_penalty=(1, 9.0), use_cache=False,
        return_dict_in_generate=True, eos_token_id=1,
    )  # fmt: skip
    policy.model.generation_config = poison
    assert sample(policy, wanted, sampling) == clean
    assert policy.model.generation_config is poison, "and they are back afterwards"


def test_greedy_decoding_takes_the_likeliest_token() -> None:
    policy, wanted = models.policy(), requests(8)
    for request, completion in zip(
        wanted, sample(policy, wanted, Sampling(temperature=0, top_k=3, top_p=0.5, max_tokens=6)), strict=True
    ):
        tokens = list(request.prompt)
        for token in completion.tokens:
            assert token == int(policy.model(torch.tensor([tokens])).logits[0, -1].argmax())
            tokens.append(token)
        assert completion.logp == (0.0,) * len(completion.tokens)


def chi_square(counts: Tensor, probability: Tensor) -> float:
    """How many standard deviations χ² lies above its mean, over tokens expected at least 5 times and the rest."""
    expected = probability * counts.sum()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum()[None]])
    expected = torch.cat([expected[common], expected[~common].sum()[None]]).clamp(min=1e-9)
    degrees = len(expected) - 1
    return (float(((observed - expected) ** 2 / expected).sum()) - degrees) / (2 * degrees) ** 0.5


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.5), Sampling(top_k=5), Sampling(top_p=0.7), Sampling(2.0, 0.8, 9)]
)
def test_what_is_drawn_follows_the_distribution(sampling: Sampling) -> None:
    policy, prompt = models.policy(), (9, 8, 7)
    count = 4000
    one = Sampling(sampling.temperature, sampling.top_p, sampling.top_k, max_tokens=1)
    wanted = [Request("train", 0, "p", index, prompt) for index in range(count)]
    completions = sample(policy, wanted, one, batch_size=500)
    probability = cut(policy.model(torch.tensor([prompt])).logits[0, -1].detach().double(), sampling)
    drawn = torch.tensor([completion.tokens[0] for completion in completions])
    counts = torch.bincount(drawn, minlength=models.SIZE).double()
    assert not counts[probability == 0].any()
    assert abs(chi_square(counts, probability)) < 4
    reported = torch.tensor([(completion.logp or ())[0] for completion in completions], dtype=torch.float64)
    torch.testing.assert_close(reported, probability.log()[drawn], atol=1e-5, rtol=0)


def cut(logits: Tensor, sampling: Sampling) -> Tensor:
    """The textbook way: rank, keep the first k, keep until the share is reached, renormalize."""
    probability = torch.softmax(logits / sampling.temperature, -1)
    ranked = probability.argsort(descending=True).tolist()
    kept = set(ranked[: sampling.top_k or len(ranked)])
    whole, share, nucleus = sum(float(probability[token]) for token in kept), 0.0, []
    for token in ranked:
        if token in kept and share < sampling.top_p * whole:
            nucleus.append(token)
            share += float(probability[token])
    result = torch.zeros_like(probability)
    result[nucleus] = probability[nucleus]
    return result / result.sum()


scores = st.lists(st.floats(-20, 20, width=32), min_size=2, max_size=12)


@given(scores, st.floats(0, 1, exclude_max=True), st.integers(0, 5), st.floats(0.05, 1), st.sampled_from([0.1, 1.0, 3]))
def test_a_draw_is_possible_and_its_log_prob_no_more_than_zero(
    row: list[float], noise: float, top_k: int, top_p: float, temperature: float
) -> None:
    logits = torch.tensor([row])
    tokens, logp = draw(logits, torch.tensor([noise], dtype=torch.float64), Sampling(temperature, top_p, top_k))
    assert 0 <= int(tokens) < len(row)
    assert -torch.inf < float(logp) <= 0
    if top_k == 1 and len(set(row)) == len(row):
        assert int(tokens) == int(logits.argmax())


def test_the_largest_noise_still_draws_a_token_of_positive_probability() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, -torch.inf, -torch.inf]]).repeat(3, 1)
    noise = torch.tensor([0.0, 0.5, 1 - 2.0**-52], dtype=torch.float64)
    tokens, logp = draw(logits, noise, Sampling())
    assert tokens.tolist() == [0, 2, 2]
    torch.testing.assert_close(logp, torch.log_softmax(logits[0].double(), -1)[tokens])


def test_large_vocabularies_are_drawn_from_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, wanted, sampling = models.policy(), requests(16), Sampling(max_tokens=5)
    whole = sample(policy, wanted, sampling)
    monkeypatch.setattr("upge_parts.engines.keyed._LARGEST", 3 * models.SIZE)
    assert sample(policy, wanted, sampling) == whole


def test_noise_is_uniform_and_depends_on_key_and_position_alone() -> None:
    keys = [0, 1, 2**63, 2**64 - 1, *range(5, 300)]
    noise = uniforms(keys, 50)
    assert noise.dtype == torch.float64
    assert float(noise.min()) >= 0
    assert float(noise.max()) < 1
    assert torch.equal(uniforms(keys[3:7], 20), noise[3:7, :20])
    counts = torch.histc(noise.float(), 20, 0, 1).double()
    assert abs(chi_square(counts, torch.full((20,), 0.05, dtype=torch.float64))) < 4
    assert abs(float(torch.corrcoef(noise)[0, 1:].mean())) < 0.05


def test_what_can_not_be_sampled_is_refused() -> None:
    policy = models.policy()
    long = Request("train", 0, "long", 0, (9,) * 120)
    assert sample(policy, [long], Sampling(max_tokens=8))
    with pytest.raises(ModelError, match=r"problem long: a prompt of 120 tokens and rollout\.max_tokens 9 .* 128"):
        sample(policy, [long], Sampling(max_tokens=9))
    with pytest.raises(ModelError, match="no tokens"):
        sample(policy, [Request("train", 0, "p", 0, ())], Sampling())
    with pytest.raises(ValueError, match="no policy"), Transformers().open(Context()):
        pass
    assert sample(policy, [], Sampling()) == []


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_a_diverged_model_is_an_error(temperature: float) -> None:
    policy = models.policy()
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[5] = torch.nan
    with pytest.raises(FloatingPointError, match="diverged"):
        sample(policy, requests(4), Sampling(temperature=temperature, max_tokens=3))


def test_weights_are_shared_so_training_shows_without_syncing() -> None:
    policy, wanted, sampling = models.policy(), requests(8), Sampling(max_tokens=8)
    session = Generating(policy, seed=7, batch_size=4)
    before = session.sample(wanted, sampling)
    policy.log_probs([((5, 6), (7, 8))], torch.ones(1))[0].sum().backward()  # no inference tensor stands in the way
    with torch.no_grad():
        policy.model.get_output_embeddings().weight.neg_()
    assert session.sample(wanted, sampling) != before
    session.sync(models.policy())
    assert session.sample(wanted, sampling) == before
