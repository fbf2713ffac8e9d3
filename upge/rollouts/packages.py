"""Packages that a recipe needs and that a plain install lacks: asked for before anything large is loaded."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping

from upge.errors import InputError
from upge.model.lora import CONFIG
from upge.recipe.schema import Recipe


def require(recipe: Recipe) -> None:
    """Raise InputError, with the commands that help, where packages are missing."""
    if sentences := missing(recipe):
        raise InputError("\n".join(sentences))


def missing(recipe: Recipe) -> list[str]:
    """A sentence for each package that is needed and can't be imported."""
    return [
        f"{place}: {module} is not installed: pip install '{requirement}'"
        for place, packages in _needed(recipe)
        for module, requirement in packages.items()
        if not _installed(module)
    ]


def _needed(recipe: Recipe) -> Iterator[tuple[str, Mapping[str, str]]]:
    """Modules and what `pip` calls them, by the place in the recipe that needs them."""
    lora = recipe.model.lora
    for place, path in _models(recipe).items():
        if path is not None and path.endswith(".gguf"):
            yield place, {"gguf": "upge[gguf]"}
        elif path is not None and _is_adapter(path):
            yield place, {"peft": "upge[peft]"}
    if lora is not None:
        yield "model.lora", {"peft": "upge[peft]"}
        if lora.quantize is not None:
            yield "model.lora.quantize", {"bitsandbytes": "upge[qlora]"}
    for place, part in recipe.parts().items():
        yield place, part.packages


def _models(recipe: Recipe) -> dict[str, str | None]:
    """Where models and tokenizers come from, by place."""
    found = {"model.path": recipe.model.path, "model.tokenizer": recipe.model.tokenizer}
    critic = None if recipe.critic is None else recipe.critic.path
    return found | {"reference.path": recipe.reference.path, "critic.path": critic}


def _is_adapter(path: str) -> bool:
    """Whether a folder, or a run's folder, holds a LoRA adapter."""
    # os.path and not pathlib, which raises for a home that nobody has and for a name that is too long.
    folder = os.path.expanduser(path)  # noqa: PTH111
    return any(os.path.isfile(os.path.join(folder, inside, CONFIG)) for inside in ("", "model"))  # noqa: PTH113, PTH118


def _installed(module: str) -> bool:
    """Whether it can be imported, without doing so. A folder that merely has its name has no file to import."""
    if module in sys.modules:
        return True
    try:
        found = importlib.util.find_spec(module)
    except ModuleNotFoundError:  # what a dotted name is within
        return False
    return found is not None and found.origin is not None
