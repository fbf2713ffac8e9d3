"""Pydantic's errors as faults of a recipe, with places and readable messages.

An unknown key is shown at the key, a bad value at the value, and something missing at the enclosing block's key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic_core import ErrorDetails

from upge import registry
from upge.estimator.term import Term
from upge.recipe.compose import Composed, PathInRecipe, locate, node_at, path_in_tree
from upge.recipe.faults import Fault, Place
from upge.recipe.keys import homes_of, keys_at, slot_at
from upge.recipe.schema import Recipe, RecipeContext
from upge.recipe.yaml import resolve
from upge.suggestions import nearest

_KINDS = {
    r"a valid dictionary( or instance of \w+)?": "a map",
    "a valid tuple": "a list",
    "a valid string": "a text",
    "a valid integer": "an integer",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}
"""Pydantic's names of kinds, as regular expressions, and what they are called in YAML."""

_EXTENDS = "a recipe starts as another one with `extends: other.yaml`"
_FOREIGN = dict.fromkeys(
    ("defaults", "include", "includes", "inherit", "inherits", "base", "_base_", "import", "imports", "parent"),
    _EXTENDS,
) | {"_target_": "a part is named by `use: NAME`"}
"""Keys of other projects' configurations, and what recipes have for them."""

_CALLED = {
    "learning_rate": "lr",
    "num_generations": "n",
    "group_size": "n",
    "num_samples": "n",
    "max_new_tokens": "max_tokens",
    "max_completion_length": "max_tokens",
    "max_response_length": "max_tokens",
    "max_steps": "steps",
    "total_steps": "steps",
    "batch_size": "prompts",
    "train_batch_size": "prompts",
    "num_train_epochs": "epochs",
    "max_grad_norm": "clip_norm",
    "grad_clip": "clip_norm",
    "save_steps": "save_every",
    "output_dir": "folder",
    "report_to": "trackers",
    "model_name_or_path": "path",
}
"""What other trainers call a setting, and what recipes call it."""

_OWN = ("refused", "refused_key", "part_unknown")
"""Errors whose messages are ours, and whole."""


@dataclass(frozen=True)
class Wording:
    """Turns the errors of one recipe into faults."""

    composed: Composed
    workshop: RecipeContext

    def faults(self, details: Sequence[ErrorDetails], *, abstract: bool = False) -> Iterator[Fault]:
        """A fault for each error that no other one explains; in an abstract recipe, missing keys are no faults."""
        located = [(self._place_in_tree(detail), detail) for detail in details]
        meant = {(*path[:-1], self._meant(path)): path for (kind, path), _ in located if kind == "extra_forbidden"}
        wholes = {("extends",), ("abstract",)}  # what decides whether anything is missing
        astray = {path[:3] for (_, path), _ in located if self._is_astray(path[:3])}
        yield from map(self._astray, astray)
        for (kind, path), detail in located:
            # With another `use` meant, nothing is known of the part's other keys.
            explained = path[:3] in astray or meant.get((*path[:-1], "use"), path) != path
            lacking = abstract or path in meant or not wholes.isdisjoint(meant)
            # Pydantic counts what is left of a list whose items it has refused.
            explained = explained or (
                kind == "too_short" and any(path == at[: len(path)] != at for (_, at), _ in located)
            )
            if not (explained or (kind in ("missing", "lacking") and lacking)):
                yield self._fault(kind, path, detail)

    def unknown_key(self, path: PathInRecipe, place: Place) -> Fault:
        """The fault that the last key of a path is unknown there."""
        key = str(path[-1])
        if (hint := _FOREIGN.get(key)) and (len(path) == 1 or key == "_target_"):
            return Fault(f"unknown key '{key}'{_within(path)}", place, hint)
        if close := self._meant(path):
            return Fault(f"unknown key '{key}'{_within(path)}", place, f"did you mean '{close}'?")
        if hint := _elsewhere(path):
            return Fault(f"unknown key '{key}'{_within(path)}", place, hint)
        use = node_at(self.composed.root, (*path[:-1], "use"))
        options = ", ".join(keys_at(path[:-1], self.composed, self.workshop))
        homes = " or ".join(home for home in homes_of(key) if home != path[0])
        hint = f"possible {'here' if use is None else f'for {use.value}'}: {options}"
        return Fault(
            f"unknown key '{key}'{_within(path)}", place, f"{hint}; '{key}' belongs in {homes}" if homes else hint
        )

    def _meant(self, path: PathInRecipe) -> str | None:
        return nearest(str(path[-1]), keys_at(path[:-1], self.composed, self.workshop))

    def _place_in_tree(self, detail: ErrorDetails) -> tuple[str, PathInRecipe]:
        """An error's kind and path; where a part misspells its `use`, that key is unknown and `use` not missing."""
        path = path_in_tree(detail["loc"], self.composed.root)
        if detail["type"] == "missing" and path[-1] == "use":
            for key in detail["input"]:
                if nearest(key, ["use"]):
                    return "extra_forbidden", (*path[:-1], key)
        return detail["type"], path

    def _is_astray(self, path: PathInRecipe) -> bool:
        """Whether a setting of a term is misplaced among the terms."""
        if path[:2] != ("estimator", "terms") or path[-1] not in Term.model_fields:
            return False
        node = node_at(self.composed.root, path)
        return node is not None and not (isinstance(node.value, dict) and "source" in node.value)

    def _astray(self, path: PathInRecipe) -> Fault:
        message = f"'{path[-1]}' is a term's setting, and no term of its own"
        return Fault(message, locate(self.composed.root, path, prefer="key"), "check the indentation")

    def _fault(self, kind: str, path: PathInRecipe, detail: ErrorDetails) -> Fault:
        key, value = (locate(self.composed.root, path, prefer=prefer) for prefer in ("key", "value"))
        match kind:
            case "extra_forbidden":
                return self.unknown_key(path, key)
            case "missing":
                return self._missing(path)
            case "refused_key" | "lacking":
                return Fault(_message(detail, path), key)
        return Fault(_message(detail, path), value, _hint(detail))

    def _is_first(self, block: str) -> bool:
        """Whether a block is the first of those that the recipe lacks."""
        there = self.composed.root.value
        required = (name for name, field in Recipe.model_fields.items() if field.is_required() and name != "name")
        return isinstance(there, dict) and next((name for name in required if name not in there), None) == block

    def _missing(self, path: PathInRecipe) -> Fault:
        place = locate(self.composed.root, path[:-1], prefer="key")
        if len(path) == 1:  # the recipe's first line, which doesn't help to find a missing key
            place = replace(place, text="")
        slot = slot_at(path[:-1]) if path[-1] == "use" else None
        hint = f"there are: {', '.join(dict.fromkeys(o.name for o in registry.entries(slot)))}" if slot else None
        if len(path) == 1 and len(self.composed.files) == 1 and self._is_first(str(path[0])):
            hint = "`extends: other.yaml` takes it from another recipe; `upge list recipes` shows those that ship"
        return Fault(f"{_called(path)} is missing{_within(path)}", place, hint)


def _elsewhere(path: PathInRecipe) -> str | None:
    """The right block of a misplaced key, or its right name here."""
    key, slot = str(path[-1]), slot_at(path[:-1])
    if slot is not None and any(offer.name == key for offer in registry.entries(slot)):
        return f"a part is named by `use`, beside its parameters: {{use: {key}, ...}}"
    if path[:-1] == ("estimator",) and key in Term.model_fields:
        return f"'{key}' belongs in a term: estimator.terms.<term>.{key}"
    if (name := _CALLED.get(key)) and (homes := homes_of(name)):
        return f"it is called '{name}' here, in {' or '.join(homes)}"
    return None


def _hint(detail: ErrorDetails) -> str | None:
    """The suggestion for one of Pydantic's errors; None without one."""
    context, value = detail.get("ctx", {}), detail["input"]
    if detail["type"] == "literal_error":
        close = nearest(str(value), _choices(str(context.get("expected", ""))))
        return f"did you mean '{close}'?" if close else None
    if detail["type"] in ("int_type", "float_type") and isinstance(value, str) and _is_number(value):
        return "without the quotes it is a number"
    return context.get("hint") or None


def _message(detail: ErrorDetails, path: PathInRecipe) -> str:
    message = detail["msg"]
    if detail["type"] in _OWN or not path:
        return message
    if detail["type"] in ("value_error", "assertion_error"):
        return f"{_called(path)}: {message.partition(', ')[2]}"
    message = re.sub(r"^\w+ (should|must) ", "should ", message)
    for theirs, ours in _KINDS.items():
        message = re.sub(theirs, ours, message)
    if detail["type"] in ("too_short", "too_long"):
        return f"{_called(path)} {message.replace(' after validation', '')}"
    return f"{_called(path)} {message}, not {_shown(detail['input'])}"


def _called(path: PathInRecipe) -> str:
    """The last key of a path, with the indexes behind it: 'pass_at.1'."""
    keys = [index for index, key in enumerate(path) if isinstance(key, str)]
    return f"'{'.'.join(map(str, path[keys[-1] if keys else 0 :]))}'"


def _within(path: Sequence[str | int]) -> str:
    return f" in {'.'.join(map(str, path[:-1]))}" if path[:-1] else ""


def _shown(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return str(value).lower()
        case str():
            return f"'{value}'"
        case dict():
            return "a map"
        case tuple() | list():
            return "a list"
        case float() if not math.isfinite(value):
            return str(value).replace("nan", ".nan").replace("inf", ".inf")
    return str(value)


def _choices(expected: str) -> list[str]:
    return [word.strip("' ") for word in expected.replace(" or ", ", ").split(", ")]


def _is_number(text: str) -> bool:
    try:
        return isinstance(resolve(text), int | float) and not isinstance(resolve(text), bool)
    except ValueError:
        return False
