"""Failures as a person should see them: what was wrong, where, what would be right; never a traceback for bad input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

INPUT_WRONG, INTERRUPTED = 2, 130


@contextmanager
def reported() -> Iterator[None]:
    """Turn errors about the input into a message and exit 2, an interruption into exit 130."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except Exception as error:
        if not is_about_input(error):
            raise
        print(error, file=sys.stderr)
        sys.exit(INPUT_WRONG)


def is_about_input(error: Exception) -> bool:
    """Whether the error says that what the user gave is wrong, rather than that the program failed."""
    return any(kind.__name__ in ("RecipeError", "ModelError", "InputError") for kind in type(error).__mro__)
