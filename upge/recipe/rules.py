"""Rules between the blocks of a recipe: what no single field can tell, checked before any model loads."""

from __future__ import annotations

from collections.abc import Iterator

from upge.parts import Part
from upge.recipe.schema import Recipe

Broken = tuple[tuple[str | int, ...], str, str | None]
"""Where, what is wrong, and what would be right."""

PROVIDED = frozenset({"logp", "entropy", "old_logp", "reward", "truncated"})
"""The batch fields that every run can provide."""


def broken_rules(recipe: Recipe) -> Iterator[Broken]:
    """Every rule that the recipe breaks."""
    yield from _needs_without_provider(recipe)
    yield from _truncated_sampling(recipe)
    yield from _minibatches(recipe)


def _needs_without_provider(recipe: Recipe) -> Iterator[Broken]:
    provided = PROVIDED | ({"rollout_logp"} if recipe.rollout.engine.reports_logp else set())
    for place, part in recipe.estimator.parts().items():
        for field in sorted(part.reads() - provided):
            yield _path(place), f"{_name(part)} reads {field}, which nothing in this recipe provides", _remedy(field)


def _remedy(field: str) -> str | None:
    return "choose an engine that reports the log-probs it samples from" if field == "rollout_logp" else None


def _truncated_sampling(recipe: Recipe) -> Iterator[Broken]:
    """Rollouts from a cut distribution are off-policy for a log-prob of the whole one."""
    cut = [key for key, off in (("top_p", 1.0), ("top_k", 0)) if getattr(recipe.rollout, key) != off]
    for name, term in recipe.estimator.terms.items():
        weighs_rollouts = term.source in ("rollouts", "all", "kept")
        if cut and weighs_rollouts and "rollout_logp" not in term.denominator.reads():
            hint = f"remove it, or give the term '{name}' the denominator of the engine's own log-probs"
            yield ("rollout", cut[0]), f"rollouts cut by {cut[0]} are not samples of the policy that is trained", hint


def _minibatches(recipe: Recipe) -> Iterator[Broken]:
    if recipe.train.minibatches > recipe.train.prompts:
        message = f"{recipe.train.prompts} prompts can't be divided into {recipe.train.minibatches} minibatches"
        yield ("train", "minibatches"), message, "an optimizer step holds whole prompts"


def _path(place: str) -> tuple[str | int, ...]:
    return ("estimator", *(int(key) if key.isdigit() else key for key in place.split(".")))


def _name(part: Part) -> str:
    return str(part.dump()["use"])
