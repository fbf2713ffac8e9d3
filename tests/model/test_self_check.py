"""What is proven once for each model: in full precision, without a trace, and told once where it fails."""

from __future__ import annotations

import gc
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from support import tiny_models as models
from support.half_precision import prepared
from support.tiny_models import PAIRS, TEMPERATURES
from torch import nn
from transformers import LlamaForCausalLM, PreTrainedModel

from upge.model import log_probs
from upge.model.log_probs import reach
from upge.model.self_check import Proof, precision, undisturbed, within

SILENT = "{model} is slow, since {fault}"
GROUP = [([5, 6, 7], response) for response in ([1], [2, 3, 4, 8], [2, 3])]
"""Responses that share their prompt."""


def proof() -> Proof:
    return Proof(SILENT, failing="it raises")


@contextmanager
def silence() -> Iterator[None]:
    """Where a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield


def widths(model: PreTrainedModel, ask: Callable[[], Any]) -> set[int]:
    """What the head answers with while `ask` runs: 1 or 2 numbers a token where it's streamed, else logits."""
    seen: set[int] = set()
    head = model.get_output_embeddings()
    assert isinstance(head, nn.Module)
    hook = head.register_forward_hook(lambda module, inputs, output: seen.add(output.shape[-1]))
    ask()
    hook.remove()
    return seen


@pytest.mark.parametrize("make", [models.llama, models.gpt2, models.gemma2])
def test_a_model_prepared_for_half_precision_streams(make: Callable[[], PreTrainedModel]) -> None:
    """Gemma 2 caps its logits in 16 bits, the streaming head in 32: that's no fault."""
    model = prepared(make())
    with silence():
        log_probs(model, PAIRS, TEMPERATURES)
        assert widths(model, lambda: log_probs(model, PAIRS, TEMPERATURES)) == {1}
    torch.testing.assert_close(
        log_probs(model, PAIRS, TEMPERATURES)[0],
        log_probs(model, PAIRS, TEMPERATURES, streaming=False)[0],
        atol=0.2,
        rtol=0,
    )


class Lying(LlamaForCausalLM):  # type: ignore[misc]
    """Does to its logits what its config doesn't tell."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        answer = super().forward(*inputs, **named)
        answer.logits = 1.5 * answer.logits
        return answer


def lying() -> PreTrainedModel:
    model = models.llama()
    model.__class__ = Lying
    return model


def patched() -> PreTrainedModel:
    model = models.llama()
    own = model.forward

    def forward(*inputs: Any, **named: Any) -> Any:
        answer = own(*inputs, **named)
        answer.logits = 1.5 * answer.logits
        return answer

    model.forward = forward
    return model


@pytest.mark.parametrize("wrap", [lambda model: model, prepared], ids=["plain", "prepared"])
@pytest.mark.parametrize("make", [lying, patched])
def test_a_model_whose_head_lies_is_refused_once(
    make: Callable[[], PreTrainedModel], wrap: Callable[[PreTrainedModel], PreTrainedModel]
) -> None:
    model = wrap(make())
    with pytest.warns(
        UserWarning, match=r"changes its logits in a way that isn't in its config: .* from whole logits"
    ) as told:
        first = log_probs(model, PAIRS, TEMPERATURES)[0]
    assert [each.filename for each in told if "whole logits" in str(each.message)] == [__file__]
    with silence():
        assert widths(model, lambda: log_probs(model, PAIRS, TEMPERATURES)) == {models.SIZE}
    assert torch.equal(first, log_probs(model, PAIRS, TEMPERATURES, streaming=False)[0])


def test_proofs_leave_no_trace() -> None:
    """With dropout, one layer apart, gradients, layers computed again: the first call is the second, draw for draw."""
    model = models.gpt2(attn_pdrop=0.3, resid_pdrop=0.3)
    model.gradient_checkpointing_enable()
    prepared(model).train()
    model.transformer.h[0].eval()
    model.get_input_embeddings().weight.grad = kept = torch.ones(models.SIZE, 32)
    modes, forward = [module.training for module in model.modules()], model.forward
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        with silence():
            answers.append(log_probs(model, [*GROUP, *PAIRS], torch.ones(7))[0])
        answers.append(torch.rand(1))
    torch.testing.assert_close(answers[:2], answers[2:], atol=0, rtol=0)
    assert answers[0].requires_grad
    assert [module.training for module in model.modules()] == modes
    assert model.forward is forward
    assert model.is_gradient_checkpointing
    assert [name for name, each in model.named_parameters() if each.grad is not None] == ["transformer.wte.weight"]
    assert model.get_input_embeddings().weight.grad is kept
    assert bool((kept == 1).all())


def test_a_trial_runs_without_dropout_gradients_or_half_precision() -> None:
    model = prepared(models.gpt2()).train()
    with torch.autocast("cpu", torch.bfloat16), undisturbed(model):
        answers = [model(torch.tensor([[1, 2, 3]])).logits for _ in range(2)]
        assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(*answers)
    assert not answers[0].requires_grad
    plain = models.gpt2()(torch.tensor([[1, 2, 3]])).logits
    assert torch.equal(answers[0], plain)


def test_random_states_are_put_back() -> None:
    torch.manual_seed(1)
    proof().holds(models.llama(), "any", lambda: str(torch.rand(3)) and None)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(drawn, torch.rand(1))


def test_a_claim_is_tried_once_for_each_model_and_kind() -> None:
    claim, first, second = proof(), models.llama(), models.llama()
    tried: list[str] = []

    def trial() -> None:
        tried.append("")

    with silence():
        for model, kind in [(first, 1), (first, 1), (first, 2), (second, 1), (first, 1)]:
            assert claim.holds(model, kind, trial)
    assert len(tried) == 3
    assert proof().holds(first, 1, trial), "another claim knows nothing of it"
    assert len(tried) == 4


def test_a_fault_is_told_once() -> None:
    claim, model = proof(), models.llama()
    with pytest.warns(UserWarning, match="^LlamaForCausalLM is slow, since it lies$"):
        assert not claim.holds(model, None, lambda: "it lies")
    with silence():
        assert not claim.holds(model, None, lambda: None)


def test_a_trial_that_raises_is_a_fault_and_all_is_put_back() -> None:
    claim, model = proof(), prepared(models.gpt2()).train()
    forward = model.forward

    def trial() -> str | None:
        torch.rand(1)
        raise ZeroDivisionError("by 0 " * 100)

    with pytest.warns(UserWarning, match=r"since it raises \(ZeroDivisionError: by 0 by 0 .{,95}\)$"):
        assert not claim.holds(model, None, trial)
    assert all(module.training for module in model.modules())
    assert model.forward is forward


def test_what_stops_a_run_is_no_fault() -> None:
    claim, model = proof(), models.llama()

    def stopped() -> str | None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        claim.holds(model, None, stopped)
    assert claim.holds(model, None, lambda: None)


def test_a_head_that_cannot_be_streamed_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def streamed(*_: Any, **__: Any) -> Any:
        raise RuntimeError("no kernel for this")

    monkeypatch.setattr("upge.model.head_hook.streamed", streamed)
    model = models.llama()
    with pytest.warns(UserWarning, match=r"fails where its logits are streamed \(RuntimeError: no kernel for this\): "):
        answer = log_probs(model, PAIRS, TEMPERATURES)[0]
    assert torch.equal(answer, log_probs(model, PAIRS, TEMPERATURES, streaming=False)[0])
    assert "forward" not in vars(model.get_output_embeddings())


def test_models_are_not_kept() -> None:
    model = models.llama()
    with silence():
        log_probs(model, GROUP, torch.ones(3))
    assert reach(model) is not None
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_refused_models_are_not_kept() -> None:
    model = lying()
    with pytest.warns(UserWarning, match="whole logits"):
        log_probs(model, PAIRS, TEMPERATURES)
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_adapters_in_32_bits_make_a_model_in_16_no_finer() -> None:
    model = models.llama().to(torch.bfloat16)
    assert precision(model) == 2
    model.add_module("adapter", nn.Linear(2, 2))
    assert precision(model) == 2
    with silence():
        assert reach(model) is not None


def test_made_up_tokens_are_within_a_small_vocabulary() -> None:
    model = models.llama(vocab_size=3)
    assert within(model, [([3, 4], [5]), ([0], [2])]) == [([0, 1], [2]), ([0], [2])]
