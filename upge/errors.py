"""Errors that a message explains: about what the user gave, and about the machine that runs it."""

from __future__ import annotations

from collections.abc import Iterator


class Terminated(SystemExit):
    """SIGTERM was received; unlike a `sys.exit` in a part's code it is no fault."""


class InputError(ValueError):
    """The input is wrong: a missing file, a line that can't be read; the message has the place and the reason."""


class ModelError(InputError):
    """A model, tokenizer or template can't be used; one line with what was tried and what would be right."""


class RunError(RuntimeError):
    """The run can't continue because of its machine or data; the message has the reason and a remedy."""


def causes(error: BaseException, *, met: bool = False) -> Iterator[BaseException]:
    """An error and what caused it, the last one first.

    Each comes once: `raise error from error` makes an error its own cause.

    Args: met: go on to what an error was raised in the midst of, where it names no cause.
    """
    seen: list[BaseException] = []
    following: BaseException | None = error
    while following is not None and not any(following is each for each in seen):
        seen.append(following)
        yield following
        following = following.__cause__ or (following.__context__ if met else None)
