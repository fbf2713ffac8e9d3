"""The streaming head in whole models: whatever they do to their logits, and whatever their head is made of."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import tiny_models as models
from support.tiny_models import PAIRS, TEMPERATURES
from support.torch_watch import Watched
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    GraniteConfig,
    PhiConfig,
    PreTrainedModel,
    RecurrentGemmaConfig,
)

from upge.model import log_probs
from upge.model.head import Processing, Tiling
from upge.model.head_hook import pieces, processing


def tiny(config: Any, **given: Any) -> PreTrainedModel:
    shape = {
        "vocab_size": models.SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "pad_token_id": 0,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "initializer_range": 0.2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config(**(shape | given))).float().eval()
    return model


def phi() -> PreTrainedModel:
    model = tiny(PhiConfig)
    with torch.no_grad():
        model.lm_head.bias.uniform_(-2, 2)
    return model


MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": models.llama,
    "tied": lambda: models.llama(tie_word_embeddings=True),
    "gemma2": models.gemma2,
    "phi": phi,
    "cohere": lambda: tiny(CohereConfig, logit_scale=0.25),
    "granite": lambda: tiny(GraniteConfig, logits_scaling=4.0),
    "falcon h1": lambda: tiny(FalconH1Config, lm_head_multiplier=0.3, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8),
    "recurrent gemma": lambda: tiny(RecurrentGemmaConfig, logits_soft_cap=3.0, lru_width=32, num_hidden_layers=3),
}


def same(model: PreTrainedModel, tolerance: float, *, entropy: bool = True) -> None:
    """Streamed = naive in value and gradient, through a whole model."""
    dtype = next(model.parameters()).dtype
    heat = TEMPERATURES.to(dtype)
    trained = [each for each in model.parameters() if each.requires_grad]
    answers, gradients = [], []
    for streaming in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            answer = log_probs(model, PAIRS, heat, entropy=entropy, streaming=streaming)
        loss = sum((each * torch.linspace(-1, 2, 7)).sum() for each in answer if each is not None)
        answers.append(answer)
        gradients.append(torch.autograd.grad(loss, trained, allow_unused=True))
    torch.testing.assert_close(*answers, atol=tolerance, rtol=0)
    scale = max(1.0, *(float(each.abs().max()) for each in gradients[1] if each is not None))
    for here, there in zip(*gradients, strict=True):
        torch.testing.assert_close(here, there, atol=tolerance * scale, rtol=0)


def test_fused_is_naive_on_a_layernorm_model() -> None:
    same(models.gpt2().double(), 1e-10)
    same(models.gpt2().double(), 1e-10, entropy=False)


@pytest.mark.parametrize("name", MODELS)
def test_fused_is_naive_on_other_models(name: str) -> None:
    same(MODELS[name]().double(), 1e-6)


def test_what_models_do_to_their_logits_is_read_from_their_configs() -> None:
    told = {name: processing(MODELS[name]()) for name in MODELS}
    assert told == {
        "llama": Processing(),
        "tied": Processing(),
        "gemma2": Processing(cap=2.0),
        "phi": Processing(),
        "cohere": Processing(scale=0.25),
        "granite": Processing(scale=0.25),
        "falcon h1": Processing(scale=0.3),
        "recurrent gemma": Processing(cap=3.0),
    }


def test_a_frozen_head_is_no_obstacle() -> None:
    model = models.gpt2(tie_word_embeddings=False).double()
    model.lm_head.requires_grad_(False)
    same(model, 1e-10)


def test_a_vocabulary_that_is_padded() -> None:
    same(models.gpt2(vocab_size=models.SIZE + 21).double(), 1e-10)


class Watching:
    """A head's own forward pass, counted by tokens."""

    def __init__(self, head: nn.Module) -> None:
        self.tokens, self.own = 0, head.forward

    def __call__(self, hidden: Tensor) -> Tensor:
        self.tokens += hidden.shape[1]
        answer: Tensor = self.own(hidden)
        return answer


class Doubled(nn.Module):
    """A head of an unknown kind, as quantized ones are."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        answer: Tensor = 2 * self.inner(hidden)
        return answer


@pytest.mark.parametrize("make", [models.gpt2, models.gemma2])
def test_a_head_of_an_unknown_kind_is_called_for_some_tokens_at_a_time(
    make: Callable[[], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make().double()
    model.lm_head = Doubled(nn.Linear(32, models.SIZE, bias=False).double())
    assert pieces(model.lm_head, torch.zeros(1, 32)) is None
    sizes: list[int] = []
    model.lm_head.inner.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[1]))
    monkeypatch.setattr("upge.model.head_hook.Tiling", lambda: Tiling(budget=3 * 8 * 4 * models.SIZE))
    log_probs(model, PAIRS, TEMPERATURES.double())
    assert sizes[-3:] == [3, 3, 1]
    same(model, 1e-10 if make is models.gpt2 else 1e-6)


def test_a_head_whose_forward_was_replaced_is_called() -> None:
    model = models.llama()
    head = model.lm_head
    watching = Watching(head)
    head.forward = watching
    log_probs(model, PAIRS, TEMPERATURES)
    assert watching.tokens > 0
    assert head.forward is watching, "and is put back"


@pytest.mark.needs("peft")
@pytest.mark.parametrize("options", [{}, {"lora_bias": True}, {"use_dora": True}], ids=["lora", "bias", "dora"])
def test_lora_on_the_head(options: dict[str, Any]) -> None:
    from peft import LoraConfig

    model = models.gpt2(tie_word_embeddings=False).double()
    model.add_adapter(LoraConfig(r=2, lora_alpha=6, target_modules=["lm_head"], **options))
    with torch.no_grad():
        for name, each in model.named_parameters():
            if "lora_B" in name:
                each.normal_()
    model.double()
    known = pieces(model.lm_head, torch.zeros(1, 32, dtype=torch.float64))
    assert (known is None) == bool(options.get("use_dora"))
    if known is not None:
        assert [weight.shape for _, weight in known[0]] == [(models.SIZE, 32), (models.SIZE, 2)]
    same(model, 1e-10)
    model.disable_adapters()
    with torch.no_grad():
        bare = [log_probs(model, PAIRS, TEMPERATURES.double(), streaming=each)[0] for each in (True, False)]
    torch.testing.assert_close(*bare, atol=1e-10, rtol=0)


class Secretive(models.LlamaForCausalLM):  # type: ignore[misc]
    """Does something to its logits that its config doesn't tell."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        answer = super().forward(*inputs, **named)
        answer.logits = 3 * answer.logits
        return answer


def test_a_model_that_does_more_than_it_tells_gets_the_naive_formula_and_one_warning() -> None:
    model = models.llama()
    model.__class__ = Secretive
    plain = log_probs(model, PAIRS, TEMPERATURES, streaming=False)[0]
    with pytest.warns(UserWarning, match="Secretive changes its logits in a way that isn't in its config"):
        first = log_probs(model, PAIRS, TEMPERATURES)[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = log_probs(model, PAIRS, TEMPERATURES)[0]
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)


def test_a_models_log_probs_never_make_its_logits() -> None:
    tokens, vocabulary = 600, 20_000
    model = models.llama(vocab_size=vocabulary, hidden_size=32, max_position_embeddings=1024)
    pairs = [([5, 6], [7] * tokens)]
    log_probs(model, [([5, 6], [7])], torch.ones(1))  # with its trial
    largest = []
    for streaming in (True, False):
        with Watched() as watched:
            log_probs(model, pairs, torch.ones(1), streaming=streaming)[0].sum().backward()
        largest.append(watched.largest)
    assert largest == [tokens * Tiling().columns, tokens * vocabulary]
