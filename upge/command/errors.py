"""Failures as a person should see them: what was wrong, where, what would be right; never a traceback for bad input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

FAILED, INPUT_WRONG, INTERRUPTED = 1, 2, 130


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors about the input into a message and exit 2, those of a run into exit 1, an interruption into 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if is_about_input(error):
            print(error, file=sys.stderr)
            sys.exit(INPUT_WRONG)
        if _is(error, "PartError", "FloatingPointError"):
            print(error, file=sys.stderr)
            sys.exit(FAILED)
        raise  # a fault of the program: its traceback is what helps


def is_about_input(error: Exception) -> bool:
    """Whether the error says that what the user gave is wrong, rather than that the program failed."""
    return _is(error, "RecipeError", "InputError")


def _is(error: Exception, *names: str) -> bool:
    """Whether the error is of a class so named: by name, since importing the classes would import torch."""
    return any(kind.__name__ in names for kind in type(error).__mro__)
