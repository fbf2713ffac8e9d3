"""Rules between the blocks of a recipe, checked before any model loads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from upge.field_names import named_fields
from upge.part import Factor, Mask, Part, Switch
from upge.part_checks import MACHINES, Per
from upge.recipe import trials
from upge.recipe.schema import Recipe
from upge.suggestions import did_you_mean

Broken = tuple[tuple[str | int, ...], str, str | None]
"""Where, what is wrong, and what would be right."""

PROVIDED = frozenset(MACHINES) - {"rollout_logp", "value"}
"""The batch fields that every run can provide."""

REMEDIES = {
    "rollout_logp": "choose an engine that reports the log-probs it samples from",
    "value": "add a critic, with a learning rate of its own: `critic: {lr: 1e-5}`",
}


def broken_rules(recipe: Recipe) -> Iterator[Broken]:
    """Every rule that the recipe breaks."""
    yield from _needs_without_provider(recipe)
    yield from _fields_that_are_not_there(recipe)
    yield from _correcting_twice(recipe)
    yield from _two_teachers(recipe)
    yield from _refill_without_gate(recipe)
    yield from _truncated_sampling(recipe)
    yield from _engine_of_demonstrations(recipe)
    yield from _minibatches(recipe)
    yield from _splits_without_data(recipe)
    if recipe.eval.splits and recipe.evaluation_engine() is None:
        message = f"{_name(recipe.rollout.engine)} doesn't sample the policy as it is trained, so it can't measure it"
        yield ("rollout", "engine"), message, "name an engine for the evaluation: eval.engine"


def _needs_without_provider(recipe: Recipe) -> Iterator[Broken]:
    provided = set(PROVIDED)
    if recipe.rollout.engine.reports_logp:
        provided.add("rollout_logp")
    if recipe.critic is not None:
        provided.add("value")
    for place, part in recipe.estimator.parts().items():
        for field in sorted((part.reads() & MACHINES.keys()) - provided):
            message = f"{_name(part)} reads {field}, which nothing in this recipe provides"
            yield _path(place), message, REMEDIES.get(field)


def _fields_that_are_not_there(recipe: Recipe) -> Iterator[Broken]:
    """Parameters that name no field, or one of another kind than they take."""
    kinds: dict[str, Per] = {**MACHINES, **{name: part.per for name, part in recipe.fields.items()}}
    for place, part in recipe.parts().items():
        if not place.startswith("estimator."):
            continue
        for named in named_fields(part):
            path = (*_path(place.removeprefix("estimator.")), *named.path)
            fitting = {name: kind for name, kind in kinds.items() if named.per in (None, kind)}
            if named.name not in kinds:
                own = ", ".join(recipe.fields) or "none"
                hint = did_you_mean(named.name, fitting, f"the recipe's own under `fields` are: {own}")
                yield path, f"there is no field '{named.name}'", hint
            elif named.name not in fitting:
                message = f"'{named.name}' has a number per {kinds[named.name]}; this takes one per {named.per}"
                yield path, message, f"fields per {named.per} are {', '.join(fitting)}"


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
        message = "nothing is ever refilled: no switch sets a coefficient to 0 because of rewards"
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
    """Rollouts from a cut distribution are off-policy for a log-prob of the whole one.

    Over the engine's log-probs the ratio of an unchanged policy is the share that the cut leaves, and not 1.
    """
    cut = [key for key, off in (("top_p", 1.0), ("top_k", 0)) if getattr(recipe.rollout, key) != off]
    # A nucleus holds top_p or more, up to rounding; of top_k nothing is known.
    mass = 0.999 * recipe.rollout.top_p if cut == ["top_p"] else 0.01
    for name, term in recipe.estimator.terms.items():
        if not cut or term.source == "demonstrations":
            continue
        masks = {i: mask for i, mask in enumerate(term.mask) if isinstance(mask, Mask) and mask.trust_region}
        bounds = {i: mask for i, mask in masks.items() if trials.cut_region(mask, 0.01)}
        if "rollout_logp" not in term.denominator.reads():
            hint = f"give the term '{name}' `denominator: rollout`, the engine's own log-probs"
            if recipe.estimator.weighs_demonstrations(name):
                hint = "give rollouts a term of their own with `denominator: rollout`, the engine's own log-probs"
            hint += "".join(f", and its mask {index} {_unmoved(mask)}" for index, mask in bounds.items())
            message = f"rollouts cut by {cut[0]} are not samples of the policy that is trained"
            yield (
                ("rollout", cut[0]),
                message,
                f"remove it, or {hint}; tokens outside the cut are never drawn either way",
            )
            continue
        for index, mask in bounds.items():
            if trials.cut_region(mask, mass):
                message = (
                    f"{_name(mask)} drops tokens of an unchanged policy: with the log-probs of an engine that {cut[0]} "
                    "cuts, the ratio is the remaining share of the distribution, below 1"
                )
                yield _path(f"terms.{name}.mask.{index}"), message, f"give it {_unmoved(mask)}"


def _unmoved(mask: Mask) -> str:
    """The change by which a mask leaves an unchanged policy alone."""
    changes = trials.mended(mask, 0.01)
    if changes is None:
        return "a bound on the ratio to the old policy"
    return " ".join(f"`{key}: {value}`" for key, value in changes.items())


def _engine_of_demonstrations(recipe: Recipe) -> Iterator[Broken]:
    """Faults of parts that read an engine's log-probs of demonstrations: the placeholder 0 would make π_ref 1."""
    estimator = recipe.estimator
    if not any(map(estimator.weighs_demonstrations, estimator.terms)):
        return
    for place, part in estimator.parts().items():
        term = place.split(".")[1] if place.startswith("terms.") else None
        concerned = term is None or estimator.weighs_demonstrations(term)
        if concerned and "rollout_logp" in part.reads() and _reads_of_demonstrations(part):
            message = f"{_name(part)} reads rollout_logp of demonstrations, which no engine drew"
            hint = "take a part for demonstrations that doesn't read it"
            if term is not None and estimator.terms[term].source != "demonstrations":
                hint = "keep this one for `source: rollouts`, and give demonstrations a term of their own without it"
            yield _path(place), message, hint


def _reads_of_demonstrations(part: Part) -> bool:
    return isinstance(part, Factor | Switch) and trials.reads_of_demonstrations(part)


def _minibatches(recipe: Recipe) -> Iterator[Broken]:
    if recipe.train.minibatches > recipe.train.prompts:
        message = f"{recipe.train.prompts} prompts can't be divided into {recipe.train.minibatches} minibatches"
        yield ("train", "minibatches"), message, "an optimizer step holds whole prompts"


def _splits_without_data(recipe: Recipe) -> Iterator[Broken]:
    """Sources that read evaluation data name their splits in a map `evaluation`; others only in a session."""
    there = getattr(recipe.data, "evaluation", None)
    if not isinstance(there, Mapping):
        return
    for index, split in enumerate(recipe.eval.splits):
        if split not in there:
            hint = did_you_mean(split, there, f"data.evaluation has {', '.join(there) or 'none'}")
            yield ("eval", "splits", index), f"the data has no split '{split}'", hint


def _path(place: str) -> tuple[str | int, ...]:
    return ("estimator", *(int(key) if key.isdigit() else key for key in place.split(".")))


def _name(part: Part) -> str:
    return str(part.dump()["use"])
