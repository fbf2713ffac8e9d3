"""What the class of a part declares, checked where the class is made: later, a wrong word would be noticed too late."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    from upge.parts import Part

Scope = Literal["token", "trajectory", "group", "step"]
"""How much of an optimizer step a part must see at once, from the least to all of it."""

SCOPES: tuple[Scope, ...] = get_args(Scope)

FIELDS = frozenset(
    ("logp", "old_logp", "rollout_logp", "reference_logp", "entropy", "value", "reward", "truncated"),
)
"""What a part has to declare before it may read it; the batch's structure is free to all."""


DECLARED = frozenset(("slot", "api", "needs", "trust_region", "scope", "packages", "reports_logp"))
"""What a class says of itself."""


def check_declarations(kind: type[Part]) -> None:
    """Raise TypeError where a class variable is none of what it may be. A set of needs becomes a frozen one."""
    name = kind.__name__
    needs: Any = kind.needs
    if not isinstance(needs, set | frozenset):
        raise TypeError(f"{name}.needs = {needs!r}: should be a set of batch fields, such as {{'logp'}}")
    kind.needs = frozenset(needs)
    if unknown := sorted(map(str, needs - FIELDS)):
        raise TypeError(f"{name}.needs: there is no batch field '{unknown[0]}'; there are {', '.join(sorted(FIELDS))}")
    if kind.scope not in SCOPES:
        raise TypeError(f"{name}.scope = {kind.scope!r}: should be one of {', '.join(SCOPES)}")
    if not isinstance(kind.trust_region, bool):
        raise TypeError(f"{name}.trust_region = {kind.trust_region!r}: should be True or False")
    packages: Any = kind.packages
    if not isinstance(packages, Mapping):
        raise TypeError(f"{name}.packages = {packages!r}: should map a module to what pip calls it")
    if not isinstance(kind.api, int):
        raise TypeError(f"{name}.api = {kind.api!r}: should be the number of the part API it was written for")
    if annotated := sorted(DECLARED & kind.model_fields.keys()):
        raise TypeError(f"{name}.{annotated[0]} is the class's own and no parameter: write it without an annotation")
    if "use" in kind.fields():
        raise TypeError(f"{name}.use: no parameter can be called so, since 'use' names the part itself")


def unusable(kind: type[Part], base: type[Part], package: str) -> tuple[str, str] | None:
    """Why a class can't fill the slot of `base`, and what would help; None if it can."""
    if not (isinstance(kind, type) and issubclass(kind, base)):
        return f"is not a subclass of upge.{base.__name__}", ""
    if kind.api != base.api:
        older = f"upgrade {'upge' if kind.api > base.api else package}"
        return f"was written for version {kind.api} of the part API; this is {base.api}", older
    if lacking := sorted(kind.__abstractmethods__):
        slot = getattr(kind, "slot", "part")
        return f"has no {' and no '.join(lacking)}, which every {slot} owes", ""
    return None
