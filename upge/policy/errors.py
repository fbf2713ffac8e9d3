"""What is wrong with a model, its tokenizer or its template, in words for the person who named it."""


class ModelError(ValueError):
    """A model, tokenizer or template can't be used; one line saying what was tried and what would be right."""
