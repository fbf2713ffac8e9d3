"""Prompts as data sets write them: text, messages in the ways that are common, content in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upge import Message

ROLES = {"human": "user", "gpt": "assistant"}
"""ShareGPT's names of speakers, and what chat templates call them."""

_KEYS = (("role", "content"), ("from", "value"))


def conversation_of(value: Any, column: str) -> tuple[str | list[Message], str | None]:
    """A prompt, and the demonstration in the assistant's turn that ends it.

    Messages have `role` and `content`, or, as ShareGPT writes them, `from` (human, gpt, system) and `value`. Content is
    text, or a list of parts `{"type": "text", "text": ...}`, whose texts are joined without anything between them.
    Raises ValueError.
    """
    if isinstance(value, str) and value:
        return value, None
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise ValueError(f"'{column}' should be text, or a list of messages with 'role' and 'content'")
    turns = [
        _message(turn, f"'{column}' should be text, or a list of messages: turn {at}") for at, turn in _from1(value)
    ]
    if turns[-1]["role"] == "assistant" and len(turns) > 1:
        return turns[:-1], turns[-1]["content"]
    return turns, None


def _message(turn: Mapping[str, Any], place: str) -> Message:
    # Arrow fills the keys that other turns have with null; a chat template takes the others.
    said = {str(key): each for key, each in turn.items() if each is not None}
    for role, content in _KEYS:
        if isinstance(said.get(role), str) and content in said:
            text = _text(said[content], f"{place}, '{content}'")
            others = {key: each for key, each in said.items() if isinstance(each, str) and key not in (role, content)}
            return {"role": ROLES.get(said[role], said[role]), "content": text, **others}
    there = ", ".join(said) or "nothing"
    raise ValueError(f"{place} should have 'role' and 'content', or 'from' and 'value'; it has {there}")


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{place} should be text, or a list of parts of text, not {type(content).__name__}")
    return "".join(_part(part, f"{place}, part {at}") for at, part in _from1(content))


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) and part.get("type", "text") == "text" else None
    if not isinstance(text, str):
        kind = f"of type '{part['type']}'" if isinstance(part, Mapping) and part.get("type") else type(part).__name__
        raise ValueError(f'{place} is {kind}; only parts of text are read: {{"type": "text", "text": ...}}')
    return text


def _from1(items: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(items, start=1))
