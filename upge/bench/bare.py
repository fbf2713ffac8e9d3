"""Hybrid post-training as a bare script: transformers and torch alone, nothing configurable, nothing kept.

What the lab's hpt recipe is timed against: as many prompts, samples, updates and measurements of the same model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

N, LENGTH, PROMPTS, RATE = 8, 96, 32, 2.5e-4
Task = tuple[str, str, str]
"""Prompt, answer, demonstration."""


def train(folder: str, tasks: Sequence[Task], splits: Sequence[Sequence[Task]], steps: int) -> tuple[Any, int]:
    """The trained model, and how many tokens were sampled."""
    torch.manual_seed(0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.0)
    sampled = sum(measure(model, tokenizer, split) for split in splits)
    for step in range(steps):
        batch = [tasks[index % len(tasks)] for index in range(step * PROMPTS, (step + 1) * PROMPTS)]
        prompts, responses, rewards = sample(model, tokenizer, [task for task in batch for _ in range(N)])
        sampled += sum(map(len, responses))
        rows, signs, scales = choose(tokenizer, batch, prompts, responses, torch.tensor(rewards).view(-1, N))
        if rows:
            loss = -(log_probs(model, rows) * (torch.tensor(signs) * torch.tensor(scales))[:, None]).sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
    return model, sampled + sum(measure(model, tokenizer, split) for split in splits)


@torch.no_grad()
def sample(model: Any, tokenizer: Any, tasks: Sequence[Task]) -> tuple[list[list[int]], list[list[int]], list[float]]:
    """Prompts, responses and rewards; an update is made at once, so that the ratio to the sampling policy is 1."""
    prompts = [tokenizer(prompt)["input_ids"] for prompt, _, _ in tasks]
    width, end = max(map(len, prompts)), tokenizer.eos_token_id
    tokens = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    drawn = model.generate(
        input_ids=tokens, attention_mask=mask, do_sample=True, max_new_tokens=LENGTH, top_k=0, pad_token_id=0
    )
    rows = drawn[:, width:].tolist()
    responses = [row[: row.index(end) + 1] if end in row else row for row in rows]
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    return prompts, responses, [float(t.rpartition("=")[2].strip() == a) for t, (_, a, _) in zip(texts, tasks)]  # noqa: B905


def choose(
    tokenizer: Any, batch: Sequence[Task], prompts: list[list[int]], responses: list[list[int]], rewards: Tensor
) -> tuple[list[tuple[list[int], list[int]]], list[float], list[float]]:
    """Rows with their advantages and scales: rollouts where some are right, the demonstration where none is."""
    rows, signs, scales = [], [], []
    imitated = int((rewards.sum(1) == 0).sum())
    count = max(len(batch) - imitated, 1) * N * LENGTH
    for index, (_, _, demonstration) in enumerate(batch):
        advantage = (rewards[index] - rewards[index].mean()) / (rewards[index].std() + 1e-6)
        if rewards[index].sum() == 0:
            shown = [*tokenizer(demonstration)["input_ids"], tokenizer.eos_token_id]
            rows.append((prompts[index * N], shown))
            signs.append(1.0)
            scales.append(1 / (imitated * len(shown)))
        elif rewards[index].std() > 0:
            for place in range(N):
                rows.append((prompts[index * N + place], responses[index * N + place]))
                signs.append(float(advantage[place]))
                scales.append(1 / count)
    return rows, signs, scales


def log_probs(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> Tensor:
    """(B, L) of response tokens; 0 elsewhere."""
    width = max(len(prompt) + len(response) for prompt, response in rows)
    tokens = torch.tensor([p + r + [0] * (width - len(p) - len(r)) for p, r in rows])
    real = torch.tensor([[0] * len(p) + [1] * len(r) + [0] * (width - len(p) - len(r)) for p, r in rows])
    logits = model(input_ids=tokens, attention_mask=(tokens != 0).long()).logits[:, :-1]
    log_probs: Tensor = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None])[..., 0] * real[:, 1:]
    return log_probs


def measure(model: Any, tokenizer: Any, split: Sequence[Task]) -> int:
    """Four samples of each; returns how many tokens these had."""
    return sum(map(len, sample(model, tokenizer, [task for task in split for _ in range(4)])[1]))
