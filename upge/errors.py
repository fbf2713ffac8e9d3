"""Errors that a message explains: about what the user gave, and about the machine that runs it."""


class Terminated(SystemExit):
    """SIGTERM asks the process to end; unlike a `sys.exit` in somebody's code it is no fault."""


class InputError(ValueError):
    """The input is wrong: a missing file, a line that can't be read; the message says where and what."""


class ModelError(InputError):
    """A model, tokenizer or template can't be used; one line saying what was tried and what would be right."""


class RunError(RuntimeError):
    """The run can't go on, and the message says why and what would help; its code is not at fault."""
