"""credit.jsonl: of a few trajectories a step, what each of their tokens was weighed with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from upge.estimator.credit import Weighed
from upge.rollouts.rollout_batch import RolloutBatch
from upge.types import Trajectory

PROMPTS, ROLLOUTS, DEMONSTRATIONS = 2, 3, 1
"""Of each rollout batch the first prompts, with their first trajectories, are kept."""

TOKENS, CHARACTERS = 512, 2000
"""How many tokens of a response, and characters of a prompt, are kept."""


@dataclass
class Entry:
    """A trajectory with what it was weighed with, term by term, for terms that give it a coefficient other than 0.

    Attributes: advantage: the mean of Â over its tokens; missing while it waits for a forward pass. weights: of tokens.
    """

    trajectory: Trajectory
    coefficient: dict[str, float]
    advantage: dict[str, float]
    weights: dict[str, list[float]] = field(default_factory=dict)


class TokenLog:
    """Keeps what was said of some trajectories of a rollout batch, from credit to the first time they are weighed.

    A trajectory that needs no forward pass is never weighed: its weights are 0, and it has none here.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._entries: dict[int, Entry] = {}  # by the identity of the trajectory, which the entry keeps alive

    def begin(self, rollouts: RolloutBatch) -> None:
        """Choose trajectories of a new rollout batch, and keep their credit."""
        self._entries = {}
        for row in _chosen(rollouts.trajectories):
            trajectory = rollouts.trajectories[row]
            own = rollouts.batch.trajectory == row
            terms = {name: term for name, term in rollouts.settled.terms.items() if bool(term.active[row])}
            self._entries[id(trajectory)] = Entry(
                trajectory,
                {name: _short(term.coefficient[row]) for name, term in terms.items()},
                {n: _short(term.advantage[own].mean()) for n, term in terms.items() if term.advantage is not None},
            )

    def weighed(self, rollouts: RolloutBatch, weighed: Weighed) -> None:
        """Keep the weights of a micro-batch's tokens, of the trajectories that are weighed for the first time."""
        for row, trajectory in enumerate(rollouts.trajectories):
            entry = self._entries.get(id(trajectory))
            if entry is None or entry.weights:
                continue
            own = rollouts.batch.trajectory == row
            for name in entry.coefficient:
                factors = weighed.terms[name]
                entry.weights[name] = [_short(weight) for weight in factors.weight[own][:TOKENS].tolist()]
                entry.advantage[name] = _short(factors.advantage[own].mean())

    def lines(self, step: int) -> list[dict[str, Any]]:
        """The lines of credit.jsonl."""
        return [self._line(step, entry) for entry in self._entries.values()]

    def _line(self, step: int, entry: Entry) -> dict[str, Any]:
        each = entry.trajectory
        return {
            "step": step,
            "group": each.group,
            "problem": each.problem.id,
            "sample": each.sample,
            "reward": each.reward,
            "prompt": self._text(each.prompt)[-CHARACTERS:],
            "pieces": [self._text((token,)) for token in each.response[:TOKENS]],
            "cut": len(each.response) > TOKENS,
            "terms": {
                name: {
                    "coefficient": coefficient,
                    "advantage": entry.advantage.get(name),
                    "weights": entry.weights.get(name, []),
                }
                for name, coefficient in entry.coefficient.items()
            },
        }

    def _text(self, tokens: tuple[int, ...]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _chosen(trajectories: Sequence[Trajectory]) -> Iterator[int]:
    """The rows to keep: they depend on the prompts' places alone, however these are divided over ranks."""
    seen: dict[tuple[int, bool], int] = {}
    for row, trajectory in enumerate(trajectories):
        kind = (trajectory.group, trajectory.demonstration)
        seen[kind] = seen.get(kind, 0) + 1
        if trajectory.group < PROMPTS and seen[kind] <= (DEMONSTRATIONS if trajectory.demonstration else ROLLOUTS):
            yield row


def _short(x: Tensor | float) -> float:
    """A number to four digits: they are looked at, and not computed with."""
    return float(f"{float(x):.4g}")
