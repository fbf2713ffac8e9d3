"""A recipe as the formula that it is, for people."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

from upge.estimator import Estimator, Term
from upge.parts import Part
from upge.recipe.schema import Recipe
from upge.schedule import Schedule

SOURCES = {
    "rollouts": "the policy's rollouts",
    "demonstrations": "the demonstrations",
    "all": "rollouts and demonstrations",
    "kept": "the rows that a likelihood term weighs",
}


def explanation(recipe: Recipe) -> str:
    """The gradient of a recipe: one formula in all, one per term, and below it the factors and what each reads."""
    lines = [f"{recipe.name}: {recipe.about}".rstrip(": "), "", *_whole(recipe.estimator), ""]
    for index, switch in enumerate(recipe.estimator.switch):
        lines += [f"switch {index + 1}" if len(recipe.estimator.switch) > 1 else "switch", *_part("s", switch), ""]
    for shaping in recipe.estimator.shaping:
        lines += ["shaping", *_part("added to R", shaping), ""]
    for name, term in recipe.estimator.terms.items():
        lines += [*_term(name, term, recipe.estimator), ""]
    lines += _providers(recipe)
    return "\n".join(lines).rstrip()


def _whole(estimator: Estimator) -> Iterator[str]:
    yield "    ∇J = " + " + ".join(f"∇J_{name}" for name in estimator.terms)


def _term(name: str, term: Term, estimator: Estimator) -> Iterator[str]:
    yield f"{name}: over {SOURCES[term.source]}"
    yield f"    ∇J_{name} = Σ_t {_product(name, term, estimator)}"
    for mask in term.mask:
        yield from _part("mask", mask)
    yield from _part("π_ref", term.denominator)
    yield from _part("Â", term.advantage)
    yield from _part("n", term.reduction)
    if term.count_with:
        yield f"    counted together with {term.count_with}"


def _product(name: str, term: Term, estimator: Estimator) -> str:
    switched = any(name in switch.terms() for switch in estimator.switch)
    factors = [
        _weight(term),
        f"s_{name}(q)" if switched else "",
        "n_t",
        "mask_t" if term.mask else "",
        "" if term.denominator.reads() == {"logp"} else "(π_θ/π_ref)_t",
        "Â_t",
        "∇log π_θ(t)" if term.direction == "likelihood" else "∇H(π_θ)(t)",
    ]
    return " · ".join(factor for factor in factors if factor)


def _weight(term: Term) -> str:
    if isinstance(term.weight, Schedule):
        return f"[{term.weight.start:g} → {term.weight.end:g} in {term.weight.steps} steps]"
    return "" if term.weight == 1 else f"{term.weight:g}"


def _providers(recipe: Recipe) -> Iterator[str]:
    """What else there is beside the policy, and what is done about prompts that no term weighs."""
    needs = recipe.estimator.needs()
    if "reference_logp" in needs:
        yield f"    π_0        {recipe.reference.path or 'the policy as it starts, frozen'}"
    if "value" in needs and recipe.critic is not None:
        origin = recipe.critic.path or "the policy's body under a new head"
        yield f"    V          a critic from {origin}; clip {recipe.critic.clip:g}"
    if recipe.rollout.refill is not None:
        rounds = recipe.rollout.refill.rounds
        yield f"    prompts whose every s is 0 are replaced by fresh ones, in {rounds} rounds at most"


def _part(factor: str, part: Part) -> Iterator[str]:
    """A factor's part with its parameters, the formula in its docstring, and what it reads."""
    dumped = part.dump()
    parameters = ", ".join(f"{key}={written(value)}" for key, value in dumped.items() if key != "use")
    reads = f"   reads {', '.join(sorted(part.reads()))}" if part.reads() else ""
    yield f"    {factor:<10} {dumped['use']}({parameters}){reads}"
    for line in formula(type(part)):
        yield f"    {'':<10}   {line}"


def written(value: object) -> str:
    """A parameter's value, for people."""
    match value:
        case {"start": start, "end": end, "steps": steps}:
            return f"{start:g}→{end:g} in {steps} steps"
        case dict():
            return "{" + ", ".join(f"{key}: {written(each)}" for key, each in value.items()) + "}"
        case list() | tuple():
            return "+".join(map(written, value))
        case bool():
            return str(value).lower()
        case float():
            return f"{value:g}"
    return "null" if value is None else str(value)


def formula(kind: type[Part]) -> list[str]:
    """The lines of the formula in a part's docstring: its first indented block."""
    text = inspect.cleandoc(kind.__doc__ or "")
    block = re.search(r"^(?:    .+\n?)+", text, flags=re.MULTILINE)
    return [line.strip() for line in block[0].splitlines()] if block else []
