"""Code that a recipe names, `module:function` or `file.py:function`: taken only where the command line allows code."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from upge.errors import InputError
from upge.parts import Part, Workshop


def function_of(name: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names. Raises InputError where there is none."""
    place, _, attribute = name.rpartition(":")
    try:
        module = module_in(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except InputError:
        raise
    except Exception as error:  # the module is anybody's; whatever it raises is about the module
        raise InputError(f"'{place}' can't be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, attribute, None)
    if not callable(found):
        raise InputError(f"'{place}' has no function '{attribute}'")
    return found  # type: ignore[no-any-return]


def module_in(path: Path) -> Any:
    """The module in a file, imported once per content. Raises InputError where it can't be."""
    if not path.is_file():
        raise InputError(f"there is no file '{path}'")
    digest = hashlib.sha256(str(path).encode() + path.read_bytes()).hexdigest()[:16]
    name = f"upge_file_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the file is the user's; whatever it raises is about the file
        del sys.modules[name]
        raise InputError(f"{path.name} can't be imported: {type(error).__name__}: {error}") from error
    return module


def _allowed(name: str, info: ValidationInfo) -> str:
    """The name, a file's in full; imported, where a recipe names it, so that what is wrong with it has its place."""
    workshop = info.context
    if not isinstance(workshop, Workshop):
        return name
    if not workshop.allow_code:
        raise _refused(f"'{name}' is code", "allow it with --allow-code, if you trust it")
    name = _beside(name, workshop.folder)
    try:
        function_of(name)
    except InputError as error:
        raise _refused(str(error)) from error
    return name


def _beside(name: str, folder: Path) -> str:
    """With the file's whole path, where a file beside the recipe is meant: `rewards.py:score`, or `rewards:score`."""
    place, _, attribute = name.rpartition(":")
    file = (folder / (place if place.endswith(".py") else f"{place}.py")).resolve()
    return f"{file}:{attribute}" if place.endswith(".py") or file.is_file() else name


def _refused(message: str, hint: str = "") -> PydanticCustomError:
    return PydanticCustomError("refused", "{message}", {"message": message, "hint": hint})


_ALLOWED = AfterValidator(_allowed)

Code = Annotated[str, Field(pattern=r"^[^:]+:[A-Za-z_]\w*$"), _ALLOWED]
"""A parameter that names a function, `module:function` or `file.py:function`; see `function_of`."""


def named_by(part: Part) -> list[str]:
    """The functions that a part's own parameters name."""
    return [getattr(part, name) for name, field in type(part).model_fields.items() if _ALLOWED in field.metadata]
