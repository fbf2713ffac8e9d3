"""Code that a recipe names, `module:function` or `file.py:function`: taken only where the command line allows code."""

from __future__ import annotations

import ast
import builtins
import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_core import PydanticCustomError

from upge.errors import InputError, Terminated
from upge.part import BuildContext, Part


def function_of(name: str) -> Callable[..., Any]:
    """The function that `module:function` or `file.py:function` names. Raises InputError where there is none."""
    place, _, attribute = name.rpartition(":")
    try:
        module = module_in(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except (InputError, Terminated):
        raise
    except (Exception, SystemExit) as error:  # a user's module: any error in it is about the module
        raise InputError(f"'{place}' can't be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, attribute, None)
    if not callable(function):
        raise InputError(f"'{place}' has no function '{attribute}'")
    return function  # type: ignore[no-any-return]


def module_in(path: Path) -> Any:
    """The module in a file, imported once per content. Raises InputError where it can't be.

    What is executed is the text of the file: bytecode beside it, which may be another's, is neither read nor written.
    """
    if not path.is_file():
        raise InputError(f"there is no file '{path}'")
    text = path.read_bytes()
    digest = hashlib.sha256(str(path).encode() + text).hexdigest()[:16]
    name = f"upge_file_{path.stem}_{digest}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    # Its `import` statements, also those that are executed later, find what lies beside the file.
    vars(module)["__builtins__"] = vars(builtins) | {"__import__": _importer(path.parent)}
    try:
        exec(compile(text, str(path), "exec", dont_inherit=True), vars(module))
    except (InputError, Terminated):
        del sys.modules[name]
        raise
    except (Exception, SystemExit) as error:  # the file is the user's; whatever it raises is about the file
        del sys.modules[name]
        where = _line_in(path, error)
        raise InputError(f"{path.name} can't be imported: {type(error).__name__}: {error}{where}") from error
    return module


def neighbours(path: Path) -> list[Path]:
    """The files beside a file that its `import` statements are of, and theirs, by name; the file itself left out."""
    files, queue = {path}, [path]
    while queue:
        for name in _imported_names(queue.pop()):
            beside = path.parent / f"{name}.py"
            if _is_beside(name, path.parent) and beside not in files:
                files.add(beside)
                queue.append(beside)
    return sorted(files - {path})


def _imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level < 2:
            yield from [node.module] if node.module else (alias.name for alias in node.names)


def _is_beside(name: str, folder: Path) -> bool:
    return name not in sys.stdlib_module_names and (folder / f"{name}.py").is_file()


def _importer(folder: Path) -> Callable[..., Any]:
    """`__import__` for a file in a folder: `import helpers` and `from .helpers import f` are of the file beside it.

    The neighbour's module belongs to its own folder and file: it is in `sys.modules` under a name that no other file
    has, so that two folders with a `helpers.py` each keep their own.
    """

    def imported(name: str, scope: Any = None, local: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        beside = level == 1 and not (scope or {}).get("__package__")
        if beside and not name:  # from . import helpers
            return SimpleNamespace(
                **{submodule: module_in((folder / f"{submodule}.py").resolve()) for submodule in fromlist or ()}
            )
        if (beside or level == 0) and _is_beside(name, folder):
            return module_in((folder / f"{name}.py").resolve())
        return builtins.__import__(name, scope, local, fromlist, level)

    return imported


def _line_in(path: Path, error: BaseException) -> str:
    """Where in a file the error arose: ` (file:line)`."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = error.lineno if isinstance(error, SyntaxError) else (lines or [None])[-1]
    return "" if line is None else f" ({path}:{line})"


def _allowed(name: str, info: ValidationInfo) -> str:
    """The name, a file's in full; imported, where a recipe names it, so that what is wrong with it has its place."""
    workshop = info.context
    if not isinstance(workshop, BuildContext):
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
