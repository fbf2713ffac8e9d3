"""Parts from a file beside the recipe: `use: my_mask.py:SoftClip`, only where the command line allows code."""

from __future__ import annotations

import re
from pathlib import Path

from upge import discovery
from upge.code import module_in
from upge.declaring import unusable
from upge.errors import InputError
from upge.parts import Part


def names_file(use: str) -> bool:
    """Whether `use` names a class, or a part's parameter a function, in a Python file."""
    return re.fullmatch(r".+\.py:\w+", use) is not None


def class_in_file(base: type[Part], use: str, folder: Path, *, allowed: bool) -> type[Part]:
    """The class that `file.py:Class` names, the file relative to `folder`. Raises `discovery.Unknown`."""
    file, _, name = use.rpartition(":")
    if not allowed:
        raise discovery.Unknown(f"'{use}' is code in a file", "allow it with --allow-code, if you trust the file")
    try:
        module = module_in((folder / file).resolve())
    except InputError as error:
        raise discovery.Unknown(str(error)) from error
    kind = getattr(module, name, None)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise discovery.Unknown(f"{file} has no class '{name}' that is an upge.{base.__name__}")
    if fault := unusable(kind, base, file):
        raise discovery.Unknown(f"the class {name} in {file} {fault[0]}", fault[1])
    return kind
