"""Trials of a recipe's parts on synthetic batches, for properties that no class declares.

Parts may raise any error. `rehearse` reports it; the other functions ignore it, and the run reports it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args, get_origin

import torch
from torch import Tensor

from upge.errors import InputError
from upge.estimator.batch import Batch
from upge.estimator.estimator import Estimator
from upge.estimator.part_calls import PartCaller, initial_of
from upge.estimator.part_errors import PartError
from upge.part import Factor, Mask, Part, Stateful, Switch
from upge.recipe.compose import Composed, place_of
from upge.recipe.faults import Fault, RecipeError
from upge.recipe.schema import Recipe
from upge.testing.batches import Case, Prompt, kinds_of, with_fields

_TOKENS = 3
"""Tokens of each synthetic trajectory."""


def reads_of_demonstrations(part: Factor | Switch) -> bool:
    """Whether what a part gives changes with the `rollout_logp` of demonstrations, which no engine drew.

    One that treats demonstrations apart reads it of rollouts alone.
    """
    batch = _batch(prompts=3, rollouts=2, demonstrations=1)
    shown = batch.demonstration[batch.trajectory]
    logp = _present(batch.logp)
    answers = []
    for fill in (torch.zeros_like(logp), logp, logp - 4, logp - 19):
        answer = _answer(part, replace(batch, rollout_logp=torch.where(shown, fill, logp)))
        if answer is not None:
            answers.append(answer[:, shown] if isinstance(part, Factor) else answer)
    return any(not torch.allclose(other, answers[0], equal_nan=True) for other in answers)


def cut_region(mask: Mask, mass: float) -> bool:
    """Whether a trust region leaves out tokens while θ is still π_old, where the denominator is an engine's that draws
    from a share of the whole distribution: the ratio is that share, at least `mass`, and not 1."""
    batch = _batch(prompts=3, rollouts=2, demonstrations=0)
    logp = _present(batch.logp)
    for share in torch.linspace(mass, 1.0, 5).tolist():
        answer = _answer(mask, replace(batch, rollout_logp=logp - math.log(share)), ratio=share)
        if answer is not None and bool((answer != 1).any()):
            return True
    return False


def mended(mask: Mask, mass: float) -> dict[str, str] | None:
    """A choice of the mask's parameters by which it leaves out no token there, as `{"against": "old"}`; None: none."""
    for name, field in type(mask).fields().items():
        options = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        for option in options:
            with suppress(ValueError):
                other = type(mask).model_validate(mask.model_dump() | {name: option})
                if not cut_region(other, mass):
                    return {name: option}
    return None


def silent(estimator: Estimator, *, prompts: int, rollouts: int) -> list[str]:
    """The terms that push on no rollout, whatever the rewards, with so few of them a prompt, and would with more."""
    few, many = (_pushed(estimator, prompts, count) for count in (rollouts, 4 + rollouts))
    return [] if few is None or many is None else [name for name in estimator.terms if name in many - few]


def _present(x: Tensor | None) -> Tensor:
    assert x is not None, "a made-up batch has every field"
    return x


def _batch(*, prompts: int, rollouts: int, demonstrations: int, seed: int = 0) -> Batch:
    """Numbers for every field, rewards among them that differ; `logp` is π_old's too."""
    random = torch.Generator().manual_seed(seed)
    per_prompt = rollouts + demonstrations
    size = prompts * per_prompt

    def uniform(low: float, high: float, count: int) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=random, dtype=torch.float64)

    logp = uniform(-5.0, -0.05, size * _TOKENS)
    return Batch(
        logp=logp,
        trajectory=torch.arange(size).repeat_interleave(_TOKENS),
        group=torch.arange(prompts).repeat_interleave(per_prompt),
        demonstration=(torch.arange(per_prompt) >= rollouts).repeat(prompts),
        reward=uniform(-1.0, 1.0, size).sign() if seed % 2 else uniform(-1.0, 1.0, size),
        old_logp=logp.clone(),
        rollout_logp=logp.clone(),
        reference_logp=uniform(-5.0, -0.05, size * _TOKENS),
        entropy=uniform(0.1, 3.0, size * _TOKENS),
        value=uniform(-1.0, 1.0, size * _TOKENS),
        truncated=torch.zeros(size, dtype=torch.bool),
    )


def _answer(part: Factor | Switch, batch: Batch, *, ratio: float = 1.0) -> Tensor | None:
    """A part's result for each token, for both signs of the advantage: (2, T); or each prompt and term: (G, terms)."""
    batch = with_fields(batch, kinds_of([part]))
    ones = torch.ones_like(_present(batch.logp))
    known = {"ratio": ratio * ones, "mask": ones, "shaping": 0 * ones, "reward": batch.reward}
    try:
        state = {"": initial_of(part, "")} if isinstance(part, Stateful) else {}
        if isinstance(part, Switch):
            return torch.stack(list(PartCaller(batch, 0).coefficients(part, "", state).values()), -1)
        pushes = (PartCaller(batch, 0, known=known | {"advantage": sign * ones}) for sign in (1.0, -1.0))
        return torch.stack([viewer.factor(part, "", state) for viewer in pushes])
    except (PartError, InputError):
        return None


def _pushed(estimator: Estimator, prompts: int, rollouts: int) -> set[str] | None:
    """The terms that push on some rollout, for some rewards; None where a part raises."""
    shown, names = int(estimator.wants_demonstrations(0)), set[str]()
    for seed in range(4):
        batch = _batch(prompts=prompts, rollouts=rollouts, demonstrations=shown, seed=seed)
        batch = with_fields(batch, kinds_of(estimator.parts().values()))
        try:
            terms = estimator.credit(batch).terms
        except (PartError, InputError):
            return None
        sampled = ~batch.demonstration[batch.trajectory]
        for name, term in terms.items():
            weight = term.coefficient[batch.trajectory] * (1 if term.advantage is None else term.advantage)
            if bool((sampled & (weight != 0)).any()):
                names.add(name)
    return names


MOST = 8
"""Rollouts of a prompt at most: a part that fails with more fails with these."""


def rehearse(recipe: Recipe, composed: Composed) -> None:
    """Call every part in credit, count and weigh, at the first steps and at the last, with the state carried.

    Raises RecipeError for the first part that can't do it, with where the recipe names the part, and where the part's
    own file has it.
    """
    estimator = recipe.estimator
    state = estimator.initial()
    try:
        for step in sorted({0, 1, max(recipe.train.steps - 1, 0)}):
            for batch in _batches(recipe, step):
                credit = estimator.credit(batch, step, state=state)
                estimator.weigh(batch, estimator.count(batch, credit))
                state = credit.state
    except PartError as error:
        part = recipe.parts()[error.place]
        message = f"can't run: {error}"
        raise RecipeError([Fault(message, place_of(composed.root, error.place), _own_place(part))]) from error


def _batches(recipe: Recipe, step: int) -> Iterator[Batch]:
    """Batches with what the recipe's terms want at a step: strictly on-policy first, then with another π_old."""
    rollouts, shown = recipe.estimator.wants_rollouts(step), recipe.estimator.wants_demonstrations(step)
    n = min(recipe.rollout.n, MOST) if rollouts else 0
    if not n and not shown:
        return
    one = int(shown)
    kinds = {name: part.per for name, part in recipe.fields.items()}
    widths = {name: width for name, part in recipe.fields.items() if (width := part.width()) is not None}
    prompts = (Prompt(n, one, "mixed"), Prompt(n, one, "wrong"), Prompt(n, one, "right"))
    for case in (Case(prompts, "none", 6, seed=11), Case(prompts, "near", 6, seed=11)):
        batch = with_fields(case.batch, kinds_of(recipe.estimator.parts().values()) | kinds, widths)
        yield _in_float32(batch)


def _in_float32(batch: Batch) -> Batch:
    assert batch.logp is not None
    return replace(batch, logp=batch.logp.float(), reward=batch.reward.to(torch.float32))


def _own_place(part: Part) -> str | None:
    """The file and line of a part's code."""
    try:
        file, line = inspect.getsourcefile(type(part)), inspect.getsourcelines(type(part))[1]
    except (OSError, TypeError):
        return None
    return None if file is None else f"the part is {type(part).__name__} in {_near(Path(file))}:{line}"


def _near(file: Path) -> Path:
    return file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file
