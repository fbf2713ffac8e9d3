"""Checks of the declarations of a part's class, made when the class is defined."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Mapping
from typing import Any, Literal, get_args

from upge.suggestions import did_you_mean, nearest

Scope = Literal["token", "trajectory", "group", "step"]
"""How much of an optimizer step a part must see at once, from the least to all of it."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

Per = Literal["token", "trajectory", "prompt"]
"""What a field of the batch has a number for."""

ATTRIBUTES: dict[str, Per] = {
    **dict.fromkeys(("logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value"), "token"),
    **dict.fromkeys(("reward", "truncated"), "trajectory"),
}
"""The machine's fields that are attributes of the batch and of views."""

FILLED: dict[str, Per] = {
    **dict.fromkeys(("token", "turn", "turn_reward", "forced"), "token"),
    "staleness": "trajectory",
}
"""The machine's fields that only `b.field(name)` has, and only where a part declares them."""

MACHINES = ATTRIBUTES | FILLED
"""The machine's fields; a recipe names further ones."""

FIELDS = frozenset(MACHINES)
"""What a part has to declare before it may read it; the batch's structure is free to all."""

OF_THETA = frozenset(("logp", "entropy"))
"""The fields that depend on the policy in training."""


DECLARED = frozenset(("slot", "api", "needs", "trust_region", "scope", "live", "packages", "reports_logp", "per"))
"""The declarations of a class."""

LATER = frozenset(("live", "per"))
"""Of these, what a part of the first edition may have as a parameter, which it then is."""


FREE = frozenset(
    (
        "trajectory",
        "prompt",
        "demonstration",
        "rollout",
        "length",
        "advantage",
        "ratio",
        "mask",
        "shaping",
        "step",
        "state",
        "noise",
        "trajectory_noise",
    )
)
"""What every view has without a declaration."""


OF_RATIO = frozenset(("ratio", "mask", "ratio_to", "log_ratio_to"))
"""What a view has of θ without a declaration."""


@functools.cache
def names_in_code(kind: type) -> frozenset[str]:
    """The names of attributes and globals in the code of a part's own methods, but for the machine's."""
    codes = [
        inspect.unwrap(method).__code__
        for each in kind.__mro__
        if not each.__module__.startswith(("upge.", "pydantic", "builtins"))
        for method in vars(each).values()
        if inspect.isfunction(method)
    ]
    names: set[str] = set()
    while codes:
        code = codes.pop()
        names |= set(code.co_names)
        codes += [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return frozenset(names)


def check_names(name: str, namespace: Mapping[str, Any], bases: tuple[type, ...]) -> None:
    """Raise TypeError for a name in a part's class that is neither a parameter, a method, nor what a class declares.

    A parameter has an annotation. Pydantic refuses a value without one, in words that are no help here, and takes a
    misspelt `ClassVar` without a word.
    """
    if "__annotations__" not in namespace and any(key.startswith("__annotate") for key in namespace):
        return  # Python 3.14 evaluates annotations later
    annotated = namespace.get("__annotations__", {})
    for key in dict.fromkeys((*annotated, *namespace)):
        if key.startswith("_") or key in DECLARED or any(hasattr(base, key) for base in bases):
            continue
        value, close = namespace.get(key), nearest(key, DECLARED)
        if key not in annotated and isinstance(value, _DATA):
            parameter = f"write `{key}: {type(value).__name__} = {value!r}`, if it is a parameter"
            raise TypeError(f"{name}.{key} has no type; " + (f"did you mean '{close}'?" if close else parameter))
        if close and "ClassVar" in str(annotated.get(key)):
            raise TypeError(f"{name}.{key}: no class of a part declares that; did you mean '{close}'?")


_DATA = (bool, int, float, str, set, frozenset, list, tuple, dict)
"""What a parameter's default may be."""


def check_declarations(kind: Any) -> None:
    """Raise TypeError where a class variable is none of what it may be. A set of needs becomes a frozen one."""
    name = kind.__name__
    needs = kind.needs
    if not isinstance(needs, set | frozenset):
        raise TypeError(f"{name}.needs = {needs!r}: should be a set of batch fields, such as {{'logp'}}")
    kind.needs = frozenset(needs)
    if unknown := sorted(map(str, needs - FIELDS)):
        free = f"b.{unknown[0]} needs no declaration" if unknown[0] in FREE else did_you_mean(unknown[0], FIELDS)
        raise TypeError(f"{name}.needs: there is no batch field '{unknown[0]}'; {free}")
    if kind.scope not in SCOPES:
        hint = did_you_mean(str(kind.scope), SCOPES, f"should be one of {', '.join(SCOPES)}")
        raise TypeError(f"{name}.scope = {kind.scope!r}: {hint}")
    slots = {base.__dict__["slot"] for base in kind.__mro__ if "slot" in base.__dict__}
    if len(slots) > 1:
        raise TypeError(f"{name}.slot = {kind.slot!r}: the base class sets the slot; don't set it")
    for flag in {"trust_region", "live"} - kind.model_fields.keys():
        if not isinstance(getattr(kind, flag, False), bool):
            raise TypeError(f"{name}.{flag} = {getattr(kind, flag)!r}: should be True or False")
    if "field" in slots and getattr(kind, "per", "token") not in get_args(Per):
        raise TypeError(f"{name}.per = {kind.per!r}: should be 'token', 'trajectory' or 'prompt'")
    packages = kind.packages
    if not isinstance(packages, Mapping):
        raise TypeError(f"{name}.packages = {packages!r}: should map a module to what pip calls it")
    if not isinstance(kind.api, int):
        raise TypeError(f"{name}.api = {kind.api!r}: should be the number of the part API it was written for")
    if annotated := sorted((DECLARED - LATER) & kind.model_fields.keys()):
        raise TypeError(f"{name}.{annotated[0]} is the class's own and no parameter: write it without an annotation")
    if "use" in kind.fields():
        raise TypeError(f"{name}.use: no parameter can be called so, since 'use' names the part itself")


def unusable(kind: Any, base: Any, package: str) -> tuple[str, str] | None:
    """Why a class can't fill the slot of `base`, and what would help; None if it can."""
    is_one = isinstance(kind, type) and issubclass(kind, base)
    if not is_one:
        return f"is not a subclass of upge.{base.__name__}", ""
    if kind.api > base.api:
        return f"was written for version {kind.api} of the part API; this is {base.api}", "upgrade upge"
    if lacking := sorted(kind.__abstractmethods__):
        slot = getattr(kind, "slot", "part")
        return f"has no {' and no '.join(lacking)}, which every {slot} needs", ""
    if getattr(kind, "slot", None) == "field" and not hasattr(kind, "per"):
        return "has no per, which every field needs", "write per = 'token', 'trajectory' or 'prompt'"
    return None
