"""A model and a task small enough to train in a test: three letters, answers of one, a random two-layer network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

LLAMA = {"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2} | {
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
"""A network with RMSNorm."""

GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
"""A network with LayerNorm, exact in float64."""

HYBRID = {
    "switch": {"use": "success_rate", "above": "rl", "otherwise": "sft"},
    "terms": {
        "rl": {
            "source": "rollouts",
            "mask": {"use": "clip", "low": 0.2, "high": 0.2},
            "denominator": "old",
            "advantage": "group_norm",
            "reduction": "constant",
        },
        "sft": {"source": "demonstrations", "denominator": "current", "advantage": "one", "reduction": "sequence_mean"},
    },
}


def tokenizer(folder: Path) -> Path:
    """A tokenizer of letters, saved."""
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<eos>", *"abc?="])}
    letters = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    letters.decoder = decoders.Fuse()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=letters, pad_token="<pad>", eos_token="<eos>")
    wrapped.save_pretrained(folder / "tokenizer")
    return folder / "tokenizer"


def problems(folder: Path, count: int = 24) -> Path:
    """Problems whose answers are the letter asked for; prompts and demonstrations of several lengths."""
    lines = []
    for index in range(count):
        letter = "abc"[index % 3]
        asked = letter * (1 + index % 4) + "?"
        shown = {"id": f"p{index}", "prompt": asked, "answer": letter, "demonstration": "=" * (index % 3) + letter}
        lines.append(json.dumps(shown | {"band": ("even", "odd")[index % 2]}))
    path = folder / "problems.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def recipe(folder: Path, config: dict[str, Any] = LLAMA, **blocks: Any) -> Path:
    """A recipe on the tiny task, as a file; `blocks` replace or add keys of its blocks."""
    data = problems(folder)
    whole: dict[str, Any] = {
        "name": "tiny",
        "model": {"tokenizer": str(tokenizer(folder)), "config": config},
        "data": {"use": "jsonl", "path": str(data), "evaluation": {"test": str(data)}},
        "reward": {"use": "exact", "after": None},
        "rollout": {"engine": "transformers", "n": 6, "max_tokens": 4},
        "optimizer": {"lr": 0.003, "clip_norm": 1.0},
        "train": {"steps": 5, "prompts": 8},
        "eval": {"splits": ["test"], "n": 2, "pass_at": [2], "limit": 6},
        "log": {"folder": str(folder / "run")},
        "estimator": HYBRID,
    }
    for block, changes in blocks.items():
        whole[block] = changes if block == "estimator" else {**whole[block], **changes}
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(whole))  # JSON is YAML
    return path
