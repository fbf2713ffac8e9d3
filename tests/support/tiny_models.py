"""Tiny models with random weights and a character tokenizer, made in a moment and large enough to be wrong."""

from __future__ import annotations

import string
from typing import Any

import torch
from accelerate import Accelerator
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from upge.model import Models, Policy

CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.role == 'assistant' %}<|end|>"
    "{% else %}{{ '\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer(chat_template: str | None = None, *, bos: bool = False) -> PreTrainedTokenizerBase:
    """One token a character; `bos` puts a beginning-of-sequence token before every text."""
    special = ["<s>", "</s>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    vocabulary = {token: index for index, token in enumerate([*special, *sorted(string.printable)])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    backend.decoder = decoders.Fuse()
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=special[3:],
    )
    made.chat_template = chat_template
    return made


SIZE = len(tokenizer())

Pair = tuple[list[int], list[int]]
"""The ids of a prompt and of a response to it."""

PAIRS: list[Pair] = [([5, 9, 11], [20, 21, 22, 1]), ([8], [30]), ([7, 7, 7, 7, 7, 9], [40, 41]), ([5, 6], [])]
TEMPERATURES = torch.tensor([1.0, 0.5, 1.7, 1.0])


def llama(**given: Any) -> PreTrainedModel:
    """RMSNorm, rotary positions, grouped keys."""
    settings = {
        "vocab_size": SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "eos_token_id": 1,
        "initializer_range": 0.2,
    }
    return _seeded(LlamaForCausalLM, LlamaConfig(**(settings | given)))


def gpt2(**given: Any) -> PreTrainedModel:
    """LayerNorm, learned positions, dropout in its config: exact in float64."""
    settings = {
        "vocab_size": SIZE,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": 128,
        "eos_token_id": 1,
        "bos_token_id": 0,
    }
    return _seeded(GPT2LMHeadModel, GPT2Config(**(settings | {"initializer_range": 0.2} | given)))


def gemma2(**given: Any) -> PreTrainedModel:
    """Soft-capped logits, sliding windows."""
    settings = {
        "vocab_size": SIZE,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 128,
        "sliding_window": 8,
        "eos_token_id": 1,
        "final_logit_softcapping": 2.0,
        "initializer_range": 0.2,
    }
    return _seeded(Gemma2ForCausalLM, Gemma2Config(**(settings | given)))


def policy(model: PreTrainedModel | None = None, chat_template: str | None = None, *, bos: bool = False) -> Policy:
    return Policy(model if model is not None else llama(), tokenizer(chat_template, bos=bos))


def beside(policy: Policy) -> Models:
    """The models beside a policy, on the CPU, in one process."""
    return Models(policy, Accelerator(cpu=True))


def _seeded(kind: Any, config: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model: PreTrainedModel = kind(config).float().eval()
        return model
