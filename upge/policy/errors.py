"""What is wrong with a model, its tokenizer or its template, in words for the person who named it."""

from upge.errors import InputError


class ModelError(InputError):
    """A model, tokenizer or template can't be used; one line saying what was tried and what would be right."""
