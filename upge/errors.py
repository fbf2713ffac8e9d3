"""Errors that a message explains: about what the user gave, and about the machine that runs it."""


class Terminated(SystemExit):
    """SIGTERM was received; unlike a `sys.exit` in a part's code it is no fault."""


class InputError(ValueError):
    """The input is wrong: a missing file, a line that can't be read; the message has the place and the reason."""


class ModelError(InputError):
    """A model, tokenizer or template can't be used; one line with what was tried and what would be right."""


class RunError(RuntimeError):
    """The run can't continue because of its machine or data; the message has the reason and a remedy."""
