"""Another prompt in place of a problem's: its last user message, and what else is known of the problem."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from upge import Problem
from upge_parts.data.texts import text_of

_NAMED = re.compile(r"\{([^\W\d]\w*)\}")


@dataclass(frozen=True)
class PromptText:
    """A text with `{prompt}`, `{demonstration}`, `{success}` and `{column}`; braces around anything else stay."""

    text: str

    @property
    def names(self) -> frozenset[str]:
        """The names in braces."""
        return frozenset(_NAMED.findall(self.text))

    def of(self, problem: Problem, success: str | None = None) -> Problem | None:
        """The problem with this text in place of its last user message; None where something named is missing.

        Args: success: the text of a right response to it; None: there is none.
        """
        message = _last_user_message(problem)
        own = {"prompt": message, "demonstration": _filled(problem.demonstration), "success": _filled(success)}
        known = {name: own[name] if name in own else _column(problem, name) for name in self.names}
        if message is None or None in known.values():
            return None
        text = _NAMED.sub(lambda match: known[match[1]] or "", self.text)  # braces in what is put in mean nothing
        return replace(problem, prompt=_with_last_user_message(problem, text))


def _filled(text: str | None) -> str | None:
    """A text; None where there is nothing but white space in it."""
    return text if text is not None and text.strip() else None


def _column(problem: Problem, name: str) -> str | None:
    """A column that is a text or a number, as text; None for any other."""
    try:
        return text_of(problem.columns.get(name), name)
    except ValueError:
        return None


def _last_user_message(problem: Problem) -> str | None:
    if isinstance(problem.prompt, str):
        return problem.prompt
    place = _last_user(problem)
    return None if place is None else problem.prompt[place]["content"]


def _with_last_user_message(problem: Problem, text: str) -> str | list[dict[str, str]]:
    if isinstance(problem.prompt, str):
        return text
    place = _last_user(problem)
    return [{**turn, "content": text} if index == place else turn for index, turn in enumerate(problem.prompt)]


def _last_user(problem: Problem) -> int | None:
    """The place of the last user message in a conversation."""
    return max((place for place, turn in enumerate(problem.prompt) if _role(turn) == "user"), default=None)


def _role(turn: object) -> object:
    return turn.get("role") if isinstance(turn, Mapping) else None
