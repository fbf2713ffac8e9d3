"""The policy: log-probs against a naive formula, and templating."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_models as models
from support.tiny_models import PAIRS, TEMPERATURES, Pair
from torch import Tensor, nn
from transformers import PreTrainedModel

from upge.model import ModelError, Policy, Templater, log_probs
from upge.model.log_probs import _at_most_zero
from upge.types import Problem

token = st.integers(0, models.SIZE - 1)
pair = st.tuples(st.lists(token, min_size=1, max_size=9), st.lists(token, max_size=9))


def naive(model: PreTrainedModel, pairs: list[Pair], temperature: Tensor) -> tuple[Tensor, Tensor]:
    """One sequence at a time, no padding, no hook: log softmax and −Σ p ln p, straight from the definition."""
    log_prob, entropy = [], []
    for (prompt, response), heat in zip(pairs, temperature.tolist(), strict=True):
        if not response:
            continue
        logits = model(torch.tensor([prompt + response])).logits[0]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        distribution = torch.log_softmax(logits[len(prompt) - 1 : -1] / heat, -1)
        log_prob.append(distribution[torch.arange(len(response)), response])
        entropy.append(-(distribution.exp() * distribution).sum(-1))
    return torch.cat(log_prob), torch.cat(entropy)


def gradients(model: PreTrainedModel, loss: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(loss, [p for p in model.parameters() if p.requires_grad], retain_graph=True))


def compare(model: PreTrainedModel, pairs: list[Pair], temperature: Tensor, tolerance: float) -> None:
    expected, actual = naive(model, pairs, temperature), log_probs(model, pairs, temperature, entropy=True)
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0)
    weights = torch.linspace(-1, 2, len(expected[0])).to(expected[0])
    for ours, theirs in zip(actual, expected, strict=True):
        assert ours is not None
        there = gradients(model, (theirs * weights).sum())
        here = gradients(model, (ours * weights).sum())
        scale = max(1.0, *(float(gradient.abs().max()) for gradient in there))
        torch.testing.assert_close(here, there, atol=tolerance * scale, rtol=0)


def test_log_probs_are_exact_on_a_layernorm_model_in_float64() -> None:
    compare(models.gpt2().double(), PAIRS, TEMPERATURES.double(), 1e-10)


@pytest.mark.parametrize("make", [models.llama, models.gemma2])
def test_log_probs_are_the_naive_ones_on_rmsnorm_models(make: object) -> None:
    compare(make().double(), PAIRS, TEMPERATURES.double(), 1e-6)


@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.gemma2])
def test_log_probs_in_float32(make: object) -> None:
    compare(make(), PAIRS, TEMPERATURES, 1e-5)


def test_log_probs_of_a_tied_model() -> None:
    compare(models.llama(tie_word_embeddings=True).double(), PAIRS, TEMPERATURES.double(), 1e-6)


GPT2 = models.gpt2().double()


@given(st.lists(pair, min_size=1, max_size=5).filter(lambda pairs: any(response for _, response in pairs)))
def test_ragged_batches_give_what_single_sequences_give(pairs: list[Pair]) -> None:
    temperature = torch.linspace(0.5, 2, len(pairs), dtype=torch.float64)
    expected, entropy = naive(GPT2, pairs, temperature)
    actual = log_probs(GPT2, pairs, temperature, entropy=True, pad_id=3)
    torch.testing.assert_close(actual, (expected, entropy), atol=1e-10, rtol=0)
    assert actual[0].max() <= 0


def test_only_response_positions_reach_the_vocabulary_projection() -> None:
    model, seen = models.gemma2(), []
    model.get_output_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    log_prob, _ = log_probs(model, PAIRS, TEMPERATURES, streaming=False)
    assert seen == [(1, 7, models.SIZE)]
    assert log_prob.shape == (7,)
    assert model(torch.tensor([[5, 6]])).logits.shape == (1, 2, models.SIZE), "the hook is gone"


def test_the_hook_is_gone_after_an_error() -> None:
    model = models.llama()

    def fail(**_: object) -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        log_probs(model, PAIRS, TEMPERATURES, forward=fail)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_a_model_whose_projection_can_not_be_hooked_is_projected_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.llama()
    expected, _ = log_probs(model, PAIRS, TEMPERATURES)
    monkeypatch.setattr(model, "get_output_embeddings", lambda: None)
    for pairs, heat in ((PAIRS, TEMPERATURES), (PAIRS[1:2], TEMPERATURES[1:2])):
        actual, _ = log_probs(model, pairs, heat)
        torch.testing.assert_close(actual, naive(model, pairs, heat)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(log_probs(model, PAIRS, TEMPERATURES)[0], expected, atol=1e-6, rtol=0)


def test_a_wrapped_model_is_called_through_its_wrapper() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module, self.calls = module, 0

        def forward(self, **arguments: object) -> object:
            self.calls += 1
            return self.module(**arguments)

    model = models.llama()
    wrapper = Wrapper(model)
    torch.testing.assert_close(
        log_probs(model, PAIRS, TEMPERATURES, forward=wrapper)[0], log_probs(model, PAIRS, TEMPERATURES)[0]
    )
    assert wrapper.calls == 1


def test_a_bfloat16_model_gives_float32_log_probs() -> None:
    model = models.llama().to(torch.bfloat16)
    log_prob, entropy = log_probs(model, PAIRS, TEMPERATURES, entropy=True)
    assert log_prob.dtype == torch.float32
    assert entropy is not None
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(log_prob, naive(model, PAIRS, TEMPERATURES)[0], atol=0.05, rtol=0.05)


def test_nothing_gives_nothing() -> None:
    for pairs in ([], [([5, 6], [])]):
        log_prob, entropy = log_probs(models.llama(), pairs, torch.ones(len(pairs)), entropy=True)
        assert log_prob.shape == (0,)
        assert entropy is not None
        assert entropy.shape == (0,)


def test_certain_tokens_have_log_prob_zero_and_keep_their_gradient() -> None:
    model = models.llama(hidden_size=32)
    with torch.no_grad():
        model.lm_head.weight.mul_(10000)
    hidden = model(torch.tensor([[5, 6]])).logits[0, -1]
    log_prob, entropy = log_probs(model, [([5, 6], [int(hidden.argmax())])], torch.ones(1), entropy=True)
    assert entropy is not None
    assert -1e-6 < log_prob.item() <= 0
    assert abs(entropy.item()) < 1e-5
    assert all(gradient.isfinite().all() for gradient in gradients(model, log_prob.sum() + entropy.sum()))


def test_rounding_above_zero_is_taken_off_and_the_gradient_stays() -> None:
    rounded = torch.tensor([1e-7, 0.0, -2.0], requires_grad=True)
    bounded = _at_most_zero(rounded)
    assert bounded.tolist() == [0.0, 0.0, -2.0]
    assert torch.autograd.grad(bounded.sum(), rounded)[0].tolist() == [1.0, 1.0, 1.0]


def test_tokens_that_a_model_forbids_add_nothing_to_the_entropy() -> None:
    model = models.llama()
    model.lm_head.bias = torch.nn.Parameter(torch.zeros(models.SIZE))
    with torch.no_grad():
        model.lm_head.bias[60:] = -torch.inf
    _, entropy = log_probs(model, PAIRS, TEMPERATURES, entropy=True)
    assert entropy is not None
    assert entropy.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients(model, entropy.sum()))


@pytest.mark.parametrize(
    ("pairs", "temperature", "reason"),
    [
        ([([5], [6])], torch.zeros(1), "above 0"),
        ([([5], [6])], torch.tensor([torch.nan]), "above 0"),
        ([([], [6])], torch.ones(1), "empty prompt"),
        ([([5], [6])], torch.ones(2), "shape"),
    ],
)
def test_log_probs_refuse(pairs: list[Pair], temperature: Tensor, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        log_probs(models.llama(), pairs, temperature)


# Templating


def problem(prompt: object = "1+1", **given: object) -> Problem:
    return Problem(id="p", prompt=prompt, answer="2", **given)


def shown(policy: Policy, tokens: tuple[int, ...]) -> str:
    return str(policy.tokenizer.decode(list(tokens)))


def test_a_plain_template_fills_in_its_two_fields_and_nothing_else() -> None:
    policy = models.policy()
    templater = policy.templater("{system}|f{x}={prompt}?", "{prompt} {0}")
    assert (
        shown(policy, templater.prompt(problem(r"\frac{1}{2} {system}"))) == r"{prompt} {0}|f{x}=\frac{1}{2} {system}?"
    )


def test_without_any_template_the_prompt_stands_alone_or_after_the_system_prompt() -> None:
    policy = models.policy()
    assert shown(policy, policy.templater().prompt(problem())) == "1+1"
    assert shown(policy, policy.templater(None, "Add.").prompt(problem())) == "Add.\n\n1+1"


def test_the_beginning_of_sequence_comes_once() -> None:
    policy = models.policy(bos=True)
    for template in ("{prompt}", "<s>{prompt}"):
        assert shown(policy, policy.templater(template).prompt(problem())) == "<s>1+1"
    assert shown(policy, policy.templater().response("2")) == "2</s>", "and never before a response"


def test_an_end_of_sequence_that_the_tokenizer_adds_is_no_part_of_a_prompt() -> None:
    from tokenizers import processors

    policy = models.policy()
    policy.tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert shown(policy, policy.templater().prompt(problem())) == "<s>1+1"


def test_a_chat_template_opens_the_turn_and_ends_it_with_its_own_token() -> None:
    model = models.llama()
    model.generation_config.eos_token_id = [1, 3]
    policy = models.policy(model, models.CHAT, bos=True)
    templater = policy.templater(system="Add.")
    assert shown(policy, templater.prompt(problem())) == "<s><|system|>Add.\n<|user|>1+1\n<|assistant|>"
    assert shown(policy, templater.response("2")) == "2<|end|>"
    assert templater.response("2<|end|>") == templater.response("2"), "not ended twice"
    assert templater.text(templater.response("2")) == "2"


def test_a_turn_ends_with_the_end_of_sequence_where_the_model_does_not_stop_at_the_turns_end() -> None:
    policy = models.policy(None, models.CHAT)
    assert shown(policy, policy.templater().response("2")) == "2</s>"


def test_a_conversation_keeps_its_own_system_turn() -> None:
    policy = models.policy(None, models.CHAT)
    turns = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "1+1"}]
    assert shown(policy, policy.templater(None, "Yours.").prompt(problem(turns))).startswith(
        "<s><|system|>Mine.\n<|user|>"
    )


def test_a_plain_template_takes_a_conversation_of_one_user_turn() -> None:
    policy = models.policy(None, models.CHAT)
    templater = policy.templater("{system}Q: {prompt}\nA:", "Add. ")
    assert shown(policy, templater.prompt(problem([{"role": "user", "content": "1+1"}]))) == "Add. Q: 1+1\nA:"
    longer = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    with pytest.raises(ModelError, match="one user turn"):
        templater.prompt(problem(longer))


def test_a_conversation_without_any_template_is_refused() -> None:
    with pytest.raises(ModelError, match=r"data\.template"):
        models.policy().templater().prompt(problem([{"role": "user", "content": "1+1"}]))


def test_what_a_chat_template_refuses_is_said_in_a_line() -> None:
    policy = models.policy(None, "{{ raise_exception('System role not supported') }}")
    with pytest.raises(ModelError, match="System role not supported") as caught:
        policy.templater().prompt(problem())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("template", "system", "reason"), [("Q:", None, "no {prompt}"), ("{prompt}", "Add.", "no {system}")]
)
def test_templates_that_would_leave_something_out(template: str, system: str | None, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        models.policy().templater(template, system)


def test_a_response_needs_an_end() -> None:
    tokenizer = models.tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="nothing ends a response"):
        Templater(tokenizer)
