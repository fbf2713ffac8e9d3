"""Which keys a recipe's blocks may hold, followed down from the schema and from the parts that a recipe names."""

from __future__ import annotations

import functools
import types
import typing
from collections.abc import Sequence
from typing import Any

from upge.parts import SLOTS, Settings
from upge.recipe.merging import Composed
from upge.recipe.nodes import plain
from upge.recipe.schema import Recipe, RecipeWorkshop


def shorthand(path: tuple[str, ...]) -> str | None:
    """The key that a bare string at this path stands for: `use` for parts, `path` for models."""
    if path in (("model",), ("reference",), ("critic",)):
        return "path"
    return "use" if slot_at(path) else None


def slot_at(path: Sequence[str | int]) -> str | None:
    """The slot that the value at this path fills, or None."""
    keys = [str(key) for key in path]
    if keys and keys[-1].isdigit():
        keys.pop()
    if keys in (["data"], ["reward"]):
        return keys[0]
    if keys == ["rollout", "engine"]:
        return "engine"
    if len(keys) == 2 and keys[0] == "estimator" and keys[1] in ("switch", "shaping"):
        return keys[1]
    if len(keys) == 4 and keys[:2] == ["estimator", "terms"]:
        return keys[3] if keys[3] in ("mask", "denominator", "advantage", "reduction") else None
    return None


def keys_at(path: Sequence[str | int], composed: Composed, workshop: RecipeWorkshop) -> list[str]:
    """The keys that are possible in the block at this path; none where any key is."""
    slot = slot_at(path)
    if slot is None:
        block = _block(path)
        return [*(block.model_fields if block else ()), *(() if path else ("extends",))]
    try:
        part = functools.reduce(lambda block, key: block[key], path, plain(composed.root))
        return ["use", *workshop.find(SLOTS[slot], part["use"]).fields()]
    except (LookupError, TypeError):
        return ["use"]


def homes_of(key: str) -> list[str]:
    """The recipe's blocks that may hold this key."""
    blocks = {name: _block((name,)) for name in Recipe.model_fields}
    return [name for name, block in blocks.items() if block is not None and key in block.model_fields]


def _block(path: Sequence[str | int]) -> type[Settings] | None:
    """The schema of the block at this path, following the annotations down from `Recipe`."""
    annotation: Any = Recipe
    for key in path:
        if isinstance(annotation, type) and issubclass(annotation, Settings):
            if key not in annotation.model_fields:
                return None
            annotation = annotation.model_fields[str(key)].annotation
        elif arguments := typing.get_args(annotation):
            annotation = arguments[-1]
        annotation = _bare(annotation)
    return annotation if isinstance(annotation, type) and issubclass(annotation, Settings) else None


def _bare(annotation: Any) -> Any:
    """The block type inside an optional or a union with a number."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        kinds = [_bare(choice) for choice in typing.get_args(annotation)]
        return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Settings)), kinds[0])
    return annotation
