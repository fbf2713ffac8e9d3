"""Errors about what the user gave, found only once a run opens it."""


class Terminated(SystemExit):
    """SIGTERM asks the process to end; unlike a `sys.exit` in somebody's code it is no fault."""


class InputError(ValueError):
    """The input is wrong: a missing file, a line that can't be read; the message says where and what."""


class ModelError(InputError):
    """A model, tokenizer or template can't be used; one line saying what was tried and what would be right."""
