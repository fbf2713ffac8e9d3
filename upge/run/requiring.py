"""Packages that a recipe needs and that a plain install lacks: asked for before anything large is loaded."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator, Mapping

from upge.errors import InputError
from upge.recipe import Recipe


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
    lora, path = recipe.model.lora, recipe.model.path
    if path is not None and path.endswith(".gguf"):
        yield "model.path", {"gguf": "upge[gguf]"}
    if lora is not None:
        yield "model.lora", {"peft": "upge[peft]"}
        if lora.quantize is not None:
            yield "model.lora.quantize", {"bitsandbytes": "upge[qlora]"}
    for place, part in recipe.parts().items():
        yield place, part.packages


def _installed(module: str) -> bool:
    """Whether it can be imported, without doing so."""
    return module in sys.modules or importlib.util.find_spec(module) is not None
