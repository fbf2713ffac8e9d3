"""Multiple choice: the choices that a row has, put into its prompt under letters, and the letter of the right one."""

from __future__ import annotations

import random
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from upge_parts.data.texts import text_of, whole

LETTERS = string.ascii_uppercase


@dataclass(frozen=True)
class Choices:
    """The texts to choose from, and the place of the right one among them, from 0; None where a row names none."""

    texts: Sequence[str]
    right: int | None

    def shuffled(self, key: str) -> Choices:
        """In an order that this key alone decides."""
        order = random.Random(f"choices/{key}").sample(range(len(self.texts)), len(self.texts))
        return Choices([self.texts[place] for place in order], None if self.right is None else order.index(self.right))

    def listed(self, template: str) -> str:
        """A line each."""
        pairs = zip(LETTERS, self.texts, strict=False)
        return "\n".join(filled(template, letter=letter, choice=text) for letter, text in pairs)

    @property
    def letter(self) -> str | None:
        """The right one's letter; None where there is none."""
        return None if self.right is None else LETTERS[self.right]


def of_column(value: Any, answer: Any, column: str, answer_column: str | None) -> Choices:
    """The choices in one column: a list of texts, or of texts with labels, one of which is the answer.

    Labels stand in `{"text": [...], "label": [...]}` or in `[{"text": ..., "label": ...}, ...]`. Without labels the
    answer is a choice, its letter, or, a whole number, its place from 0. Raises ValueError.
    """
    texts, labels = _told_apart(value, column)
    if answer is None or answer_column is None:
        return Choices(texts, None)
    if labels is None:
        return Choices(texts, _right(texts, answer, answer_column))
    wanted = (text_of(answer, answer_column) or "").strip()
    if labels.count(wanted) != 1:
        raise ValueError(f"'{answer_column}' is none of the labels {', '.join(labels)}: {wanted[:60]}")
    return Choices(texts, labels.index(wanted))


def of_columns(values: Mapping[str, Any], answer: Any, answer_column: str | None) -> Choices:
    """The choices in a column each; the answer is one of these columns, or as in a list of texts. Raises ValueError."""
    texts = _checked(list(values.values()), ", ".join(values))
    if answer_column in values:
        return Choices(texts, list(values).index(str(answer_column)))
    return Choices(texts, None if answer is None or answer_column is None else _right(texts, answer, answer_column))


def filled(template: str, **values: str) -> str:
    """The template with these values for their names in braces; braces within the values stay."""
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)


def _told_apart(value: Any, column: str) -> tuple[list[str], list[str] | None]:
    """The texts, and the labels if there are any."""
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        value = {key: [each.get(key) for each in value] for key in ("text", "label")}
    if not isinstance(value, Mapping):
        return _checked(value, column), None
    texts, labels = value.get("text"), value.get("label")
    if not isinstance(texts, list) or not isinstance(labels, list) or len(texts) != len(labels):
        raise ValueError(f"'{column}' should have 'text' and 'label', two lists of one length")
    return _checked(texts, column), [text_of(label, f"{column}.label") or "" for label in labels]


def _checked(value: Any, column: str) -> list[str]:
    """Texts, or numbers as texts."""
    if not isinstance(value, list) or not all(_is_choice(each) for each in value):
        raise ValueError(f"'{column}' should be texts to choose from, none of them empty")
    if not 2 <= len(value) <= len(LETTERS):
        raise ValueError(f"'{column}' has {len(value)} choices; there can be 2 to {len(LETTERS)}")
    return [(text_of(each, column) or "").strip() for each in value]


def _is_choice(value: Any) -> bool:
    return isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) and bool(str(value).strip())


def _right(texts: Sequence[str], answer: Any, column: str) -> int:
    """Where the answer stands: a choice, its letter, or, a whole number, its place from 0."""
    place, said = whole(answer), text_of(answer, column) or ""
    if place is not None:
        found = {place}.intersection(range(len(texts)))
    else:
        found = {place for place, text in enumerate(texts) if said.strip() in (text, LETTERS[place])}
    if len(found) != 1:
        several = "more than one" if found else "none"
        raise ValueError(f"'{column}' is {several} of the choices, their letters and their places: {said[:60]}")
    return found.pop()
