"""Parts from a file beside the recipe: `use: my_mask.py:SoftClip`, only where the command line allows code."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

from upge import discovery
from upge.parts import Part


def names_file(use: str) -> bool:
    """Whether `use` names a class in a Python file."""
    return re.fullmatch(r".+\.py:\w+", use) is not None


def class_in_file(base: type[Part], use: str, folder: Path, *, allowed: bool) -> type[Part]:
    """The class that `file.py:Class` names, the file relative to `folder`. Raises `discovery.Unknown`."""
    file, _, name = use.rpartition(":")
    if not allowed:
        raise discovery.Unknown(f"'{use}' is code in a file", "allow it with --allow-code, if you trust the file")
    path = (folder / file).resolve()
    if not path.is_file():
        raise discovery.Unknown(f"there is no file '{path}'")
    kind = getattr(_module(path), name, None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise discovery.Unknown(f"{file} has no class '{name}' that is an upge.{base.__name__}")
    return kind


def _module(path: Path) -> Any:
    """The file as a module, imported once per content."""
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
        raise discovery.Unknown(f"{path.name} can't be imported: {type(error).__name__}: {error}") from error
    return module
