"""Errors about parts: who is to blame, where it stands in the recipe, and which line of whose file raised."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from upge import registry
from upge.errors import InputError, Terminated
from upge.part import Part


class PartError(RuntimeError):
    """A part did not keep its contract at run time; the message names it, its package, and its place in the recipe.

    Attributes: place: the dotted path of the part in the recipe (`estimator.terms.rl.mask.0`).
    """

    def __init__(self, message: str, place: str = "") -> None:
        super().__init__(message)
        self.place = place


class ContractViolation(Exception):
    """What a part returned is not what it owes; said by whoever asked, and turned into a `PartError`."""


class attribute_errors:  # noqa: N801 (it is called as the function that `contextlib.contextmanager` would make)
    """Turns whatever a part raises into a `PartError`; errors about the user's input pass.

    A class, since `contextlib` takes a RuntimeError made of a StopIteration for its own and raises the latter again.
    """

    def __init__(self, part: Part, place: str) -> None:
        self._part, self._place = part, place

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: object) -> None:
        del kind, frames
        part, place = self._part, self._place
        if isinstance(error, InputError | PartError | Terminated) or not isinstance(error, Exception | SystemExit):
            return
        if isinstance(error, ContractViolation):
            raise PartError(f"{label_of(part, place)} {error}", place) from error
        part, place = _raiser(error, part, place)  # a part is anybody's code
        where = line_of(error, type(part))
        raise PartError(f"{label_of(part, place)} raised {error_text(error)} ({where})", place) from error


def error_text(error: BaseException) -> str:
    """An error's class and message; the class alone where its message can't be had, since that is anybody's code."""
    try:
        return f"{type(error).__name__}: {error}".removesuffix(": ")
    except Exception:
        return type(error).__name__


def _raiser(error: BaseException, part: Part, place: str) -> tuple[Part, str]:
    """Of a part and those that it holds the one in whose file the error was raised, with its place; else the part."""
    within = [(part, place), *((inner, f"{place}.{at}") for at, inner in part.within().items())]
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for each, at in within:
            if frame.filename in _files_of(type(each)):
                return each, at
    return part, place


def _files_of(kind: type[Part]) -> set[str | None]:
    """The files of a part's class and of those that it is made from, but for the machine's own."""
    classes = [each for each in kind.__mro__ if not each.__module__.startswith(("upge.", "pydantic"))]
    return {getattr(sys.modules.get(each.__module__), "__file__", None) for each in classes}


_MACHINE = Path(__file__).parent


def line_of(error: BaseException, kind: type[Part]) -> str:
    """`file:line` of what raised: the last line of the part's own file that was on the way, else the last of all.

    Where a method of the part can't be called at all, the last of all is the machine's; then it is the part's class.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if frame.filename in _files_of(kind)]
    frame = (own or frames)[-1]
    if Path(frame.filename).is_relative_to(_MACHINE):
        with suppress(OSError, TypeError):  # of a class without a source file
            return f"{inspect.getsourcefile(kind)}:{inspect.getsourcelines(kind)[1]}"
    return f"{frame.filename}:{frame.lineno}"


def line_of_method(method: Callable[..., Any]) -> str:
    """`file:line` of where a method is defined."""
    code = inspect.unwrap(getattr(method, "__func__", method)).__code__
    return f"{code.co_filename}:{code.co_firstlineno}"


def label_of(part: Part, place: str) -> str:
    """How messages name a part: its class, its place in the recipe, and the package that offers it."""
    entries = (o for o in registry.entries(part.slot) if registry.names_class(o, type(part)))
    package = next((f" of the package {offer.package} {offer.version}" for offer in entries), "")
    return f"{type(part).__name__} ({place}){package}"


def returned(part: Any, place: str, what: str) -> PartError:
    """The error about what a part of the estimator returned, with the line of its `__call__`."""
    place = f"estimator.{place}"
    return PartError(f"{label_of(part, place)} {what} ({line_of_method(part.__call__)})", place)
