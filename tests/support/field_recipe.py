"""The tiny recipe with a field of each kind that ships, and a part that learns from all of them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from support import tiny

import upge

READING = '''
import torch

import upge

SEEN = []
"""What the part was given in each rollout batch."""


class Reading(upge.Advantage):
    """The reward and every number of the fields, added up; 0 for NaN.

        A_t = reward_i + sum of all fields
    """

    needs = {"logp", "reward"}
    live = False

    tokens: tuple[upge.TokenField, ...] = ()
    """Fields per token."""
    trajectories: tuple[upge.TrajectoryField, ...] = ()
    """Fields per trajectory."""
    prompts: tuple[upge.PromptField, ...] = ()
    """Fields per prompt."""

    def __call__(self, b):
        names = (*self.tokens, *self.trajectories, *self.prompts)
        SEEN.append({"logp": b.logp.clone(), **{name: b.field(name).clone() for name in names}})
        x = b.to_tokens(b.reward - 0.5)
        for name in self.tokens:
            x = x + 0.05 * b.field(name).nan_to_num()
        for name in self.trajectories:
            x = x + 0.1 * b.to_tokens(b.field(name))
        for name in self.prompts:
            per_prompt = b.field(name).nan_to_num().reshape(len(b.field(name)), -1).sum(1)
            x = x + 0.1 * b.to_tokens(b.to_trajectories(per_prompt.to(b.dtype)))
        return x
'''
TOKENS = {
    "own": {"use": "model_logp", "path": "policy"},
    "start": {"use": "model_logp"},
    "slow": {"use": "model_logp", "path": "policy", "ema": {"decay": 0.5}},
    "copy": {"use": "model_logp", "path": "policy", "ema": {"decay": 0.0}},
    "hinted": {"use": "model_logp", "path": "policy", "prompt": "{demonstration}{prompt}"},
    "solved": {"use": "model_logp", "path": "policy", "prompt": "{success}{prompt}"},
    "rare": {"use": "model_logp", "path": "policy", "prompt": "{only}{prompt}"},
    "marks": {"use": "tokens", "text": "ab"},
}
TRAJECTORIES = {"second": {"use": "reward", "reward": {"use": "format", "pattern": ".*a.*"}}}
PROMPTS = {"level": {"use": "column", "column": "level"}, "history": {"use": "reward_history", "last": 2}}
FIELDS: dict[str, Any] = TOKENS | TRAJECTORIES | PROMPTS


def recipe(folder: Path, **blocks: Any) -> Path:
    """The recipe as a file, with the part beside it; `blocks` are those of `tiny.recipe`."""
    (folder / "reading.py").write_text(READING)
    names = {"tokens": TOKENS, "trajectories": TRAJECTORIES, "prompts": PROMPTS}
    reads = {"use": "reading.py:Reading", **{key: list(some) for key, some in names.items()}}
    terms = {"rl": tiny.HYBRID["terms"]["rl"] | {"advantage": reads}}  # type: ignore[index]
    train = {"steps": 4, "prompts": 8, "minibatches": 2, "micro_batch_tokens": 60} | {"threads": 1, "check_problems": 0}
    path = tiny.recipe(folder, estimator={"terms": terms}, **{"train": train, "eval": {"splits": []}, **blocks})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fields": FIELDS}))
    problems = folder / "problems.jsonl"
    lines = [json.loads(line) for line in problems.read_text().splitlines()]
    for index, line in enumerate(lines):
        line |= {"level": index / 4} | ({"only": "c"} if index == 5 else {})
    problems.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def seen(recipe: upge.Recipe) -> list[dict[str, Any]]:
    """What the part has been given since it was imported, a rollout batch an entry."""
    part = recipe.estimator.terms["rl"].advantage
    found: list[dict[str, Any]] = sys.modules[type(part).__module__].SEEN
    return found
