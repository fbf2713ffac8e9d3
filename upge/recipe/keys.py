"""Which keys a recipe's blocks may hold, followed down from the schema and from the parts that a recipe names."""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from typing import Any

from upge.part import SLOTS, Part, StrictModel, Weight, find
from upge.recipe.compose import Composed, member
from upge.recipe.schema import Recipe, RecipeContext
from upge.recipe.yaml import Node


def shorthand(path: tuple[str, ...]) -> str | None:
    """The key that a bare string at this path abbreviates: `use` for parts, `path` for models."""
    if path in (("model",), ("reference",), ("critic",)):
        return "path"
    return "use" if slot_at(path) not in (None, Weight.slot) else None  # a weight is mostly a number


def slot_at(path: Sequence[str | int]) -> str | None:
    """The slot that the value at this path fills, or None."""
    keys = [str(key) for key in path]
    if keys and keys[-1].isdigit():
        keys.pop()
    if keys in (["data"], ["reward"]):
        return keys[0]
    if keys in (["rollout", "engine"], ["eval", "engine"]):
        return "engine"
    if len(keys) == 2 and keys[0] == "fields":
        return "field"
    if len(keys) == 2 and keys[0] == "estimator" and keys[1] in ("switch", "shaping"):
        return keys[1]
    if len(keys) == 4 and keys[:2] == ["estimator", "terms"]:
        own = {key: key for key in ("mask", "denominator", "advantage", "reduction", "weight")}
        return (own | {"select": "selection"}).get(keys[3])
    return None


def keys_at(path: Sequence[str | int], composed: Composed, workshop: RecipeContext) -> list[str]:
    """The keys that are possible in the block at this path; none where any key is, or nothing is known of them."""
    block = _block(path, composed.root, workshop)
    if block is None:
        return []
    if issubclass(block, Part):
        return ["use", *block.fields()]
    return [*block.model_fields, *(() if path else ("extends",))]


def means_null(path: Sequence[str | int], root: Node, workshop: RecipeContext) -> bool:
    """Whether a null at this path is a value, and not the removal of a key.

    It is one for a setting that takes null and has another default, or none; and in a map that takes any value.
    """
    kind = _kind(path[:-1], root, workshop)
    if not _is_block(kind):
        return _takes_null(_member(kind, path[-1]))
    field = (kind.fields() if issubclass(kind, Part) else kind.model_fields).get(str(path[-1]))
    if field is None or not _takes_null(field.annotation):
        return False
    return field.is_required() or field.get_default(call_default_factory=True) is not None


def homes_of(key: str) -> list[str]:
    """The recipe's blocks that may hold this key."""
    blocks = {name: _bare(field.annotation) for name, field in Recipe.model_fields.items()}
    return [name for name, block in blocks.items() if _is_block(block) and key in block.model_fields]


def _block(path: Sequence[str | int], root: Node, workshop: RecipeContext) -> type[StrictModel] | None:
    """The block or the part at this path; None for anything else."""
    kind = _kind(path, root, workshop)
    return kind if _is_block(kind) else None


def _kind(path: Sequence[str | int], root: Node, workshop: RecipeContext) -> Any:
    """The type at this path, following the annotations down from `Recipe` and what the recipe uses."""
    kind: Any = Recipe
    node: Node | None = root
    for index, key in enumerate(path, start=1):
        kind = _bare(_member(kind, key))
        node = None if node is None else member(node, key)
        base = SLOTS.get(slot_at(path[:index]) or "") or (kind if kind in SLOTS.values() else None)  # a part's own part
        if base is Weight and (node is None or not isinstance(node.value, dict) or "use" not in node.value):
            base = None  # a number or a schedule
        if node is not None and isinstance(node.value, dict) and base is not None:
            kind = _part(base, node.value.get("use"), workshop)
    return kind


def _part(base: type[Part], use: Node | None, workshop: RecipeContext) -> type[Part] | None:
    """The class that `use` names; the slot's base where nothing is named, None if no part has the name."""
    if use is None or not isinstance(use.value, str):
        return base
    try:
        return find(base, use.value, workshop)
    except LookupError:
        return None


def _member(kind: Any, key: str | int) -> Any:
    """The annotation of a block's field, or of what a map or list holds."""
    if _is_block(kind):
        fields = kind.fields() if issubclass(kind, Part) else kind.model_fields
        return fields[str(key)].annotation if key in fields else None
    if kind is Any:
        return Any
    arguments = [argument for argument in typing.get_args(kind) if argument is not Ellipsis]
    return arguments[-1] if arguments else None


def _takes_null(annotation: Any) -> bool:
    """Whether None is a value of this type."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _takes_null(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return any(map(_takes_null, typing.get_args(annotation)))
    return annotation is Any or annotation is types.NoneType


def _is_block(kind: Any) -> typing.TypeGuard[type[StrictModel]]:
    return isinstance(kind, type) and issubclass(kind, StrictModel)


def _bare(annotation: Any) -> Any:
    """The block type inside an optional or a union with a number."""
    if typing.get_origin(annotation) is typing.Annotated:
        return _bare(typing.get_args(annotation)[0])
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        kinds = [_bare(choice) for choice in typing.get_args(annotation)]
        return next(filter(_is_block, kinds), kinds[0])
    return annotation
