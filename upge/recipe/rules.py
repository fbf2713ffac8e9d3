"""Rules between the blocks of a recipe: what no single field can tell, checked before any model loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from upge.parts import Part
from upge.recipe.faults import nearest
from upge.recipe.schema import Recipe

Broken = tuple[tuple[str | int, ...], str, str | None]
"""Where, what is wrong, and what would be right."""

PROVIDED = frozenset({"logp", "entropy", "old_logp", "reference_logp", "reward", "truncated"})
"""The batch fields that every run can provide."""

REMEDIES = {
    "rollout_logp": "choose an engine that reports the log-probs it samples from",
    "value": "add a critic, with a learning rate of its own: `critic: {lr: 1e-5}`",
}


def broken_rules(recipe: Recipe) -> Iterator[Broken]:
    """Every rule that the recipe breaks."""
    yield from _needs_without_provider(recipe)
    yield from _correcting_twice(recipe)
    yield from _two_teachers(recipe)
    yield from _refill_without_gate(recipe)
    yield from _truncated_sampling(recipe)
    yield from _minibatches(recipe)
    yield from _splits_without_data(recipe)


def _needs_without_provider(recipe: Recipe) -> Iterator[Broken]:
    provided = set(PROVIDED)
    if recipe.rollout.engine.reports_logp:
        provided.add("rollout_logp")
    if recipe.critic is not None:
        provided.add("value")
    for place, part in recipe.estimator.parts().items():
        for field in sorted(part.reads() - provided):
            message = f"{_name(part)} reads {field}, which nothing in this recipe provides"
            yield _path(place), message, REMEDIES.get(field)


def _correcting_twice(recipe: Recipe) -> Iterator[Broken]:
    """A weight by the engine's log-probs over a denominator that already is the engine's."""
    for name, term in recipe.estimator.terms.items():
        for index, mask in enumerate(term.mask):
            weight = "rollout_logp" in mask.reads() and not mask.trust_region
            if weight and "rollout_logp" in term.denominator.reads():
                message = f"{_name(mask)} corrects for the engine, as the denominator {_name(term.denominator)} does"
                yield _path(f"terms.{name}.mask.{index}"), message, "leave one of them out, or the gap counts twice"


def _two_teachers(recipe: Recipe) -> Iterator[Broken]:
    """The critic learns one kind of return."""
    teachers = {n: t.advantage for n, t in recipe.estimator.terms.items() if "value" in t.advantage.reads()}
    first = next(iter(teachers), "")
    for name, advantage in teachers.items():
        if advantage != teachers[first]:
            message = f"teaches the critic other returns than the term '{first}' does"
            yield _path(f"terms.{name}.advantage"), f"{_name(advantage)} {message}", "give both the same advantage"


def _refill_without_gate(recipe: Recipe) -> Iterator[Broken]:
    if recipe.rollout.refill is None:
        return
    if not any("reward" in switch.reads() for switch in recipe.estimator.switch):
        message = "nothing is ever refilled: no switch takes weight from a prompt for its rewards"
        yield (
            ("rollout", "refill"),
            message,
            "add one, for example `estimator.switch: {use: informative, keep: <term>}`",
        )
    for index, switch in enumerate(recipe.estimator.switch):
        for field in sorted(switch.reads() - {"reward", "truncated"}):
            message = f"{_name(switch)} reads {field}, which is not there yet when prompts are refilled"
            yield _path(f"switch.{index}"), message, "leave out rollout.refill, or this switch"


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


def _splits_without_data(recipe: Recipe) -> Iterator[Broken]:
    """Sources that read evaluation data name their splits in a map `evaluation`; of others only a session can tell."""
    there = getattr(recipe.data, "evaluation", None)
    if not isinstance(there, Mapping):
        return
    for index, split in enumerate(recipe.eval.splits):
        if split not in there:
            near = nearest(split, there)
            hint = f"did you mean '{near}'?" if near else f"data.evaluation has {', '.join(there) or 'none'}"
            yield ("eval", "splits", index), f"the data has no split '{split}'", hint


def _path(place: str) -> tuple[str | int, ...]:
    return ("estimator", *(int(key) if key.isdigit() else key for key in place.split(".")))


def _name(part: Part) -> str:
    return str(part.dump()["use"])
