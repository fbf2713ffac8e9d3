"""Parameters of parts that name a model to ask: what is wrong with such a path, and what a part would have opened."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel
from pydantic_core import PydanticCustomError

from upge.ema import Ema

POLICY = "policy"
"""The path of the policy itself; `./policy` is a folder of that name."""


def fault_of(path: str) -> str | None:
    """What is wrong with the place of a model, as far as this machine can tell; None for nothing."""
    # os.path and not pathlib, which raises for the home of an unknown user and for a name that is too long.
    if not _local(path) or os.path.exists(os.path.expanduser(path)):  # noqa: PTH110, PTH111
        return None
    hint = "" if "/" in path or path.startswith((".", "~")) else "; what is on the Hub is named owner/name"
    return f"there is no folder '{path}'{hint}"


def _local(path: str) -> bool:
    """Whether a model's path can only be a folder on this machine, not a Hub id or a package's folder."""
    if ":" in path:
        return False
    looks_local = path.startswith((".", "/", "~")) or path.count("/") != 1
    return looks_local or os.path.isdir(path.partition("/")[0])  # noqa: PTH112 (as above)


def _there(path: str) -> str:
    if path != POLICY and (fault := fault_of(path)) is not None:
        raise PydanticCustomError("refused", "{message}", {"message": fault})
    return path


_THERE = AfterValidator(_there)

ModelPath = Annotated[str, _THERE]
"""A parameter that names a model to ask: "policy", or a place as `model.path` takes it. Where it may also be null,
that is the policy as it starts. See `upge.Models.open`."""


def named_models(part: BaseModel) -> dict[str, str | None]:
    """The models that a part's own parameters name, by parameter; None is the policy as it starts."""
    return {key: getattr(part, name) for key, name in _parameters(part) if getattr(part, name) != POLICY}


def averages(part: BaseModel) -> frozenset[Ema]:
    """The moving averages of the policy that a part's own parameters describe."""
    return frozenset(value for _, value in part if isinstance(value, Ema))


def _parameters(part: BaseModel) -> list[tuple[str, str]]:
    fields = type(part).model_fields.items()
    return [(field.alias or name, name) for name, field in fields if _mentions((field.annotation, *field.metadata))]


def _mentions(annotation: Any) -> bool:
    """Whether a type is `ModelPath`, or one that holds it."""
    if annotation is _THERE:
        return True
    inner = annotation if isinstance(annotation, tuple) else get_args(annotation)
    return get_origin(annotation) is not Literal and any(map(_mentions, inner))
