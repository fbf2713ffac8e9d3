"""Prompts as data sets write them: text, messages in the ways that are common, content in parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from upge import Message

ROLES = {
    "human": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard"), "assistant"),
    **{role: role for role in ("system", "user", "assistant", "tool")},
}
"""Speakers in data sets, in small letters, and what chat templates call them; others keep their names."""

THOUGHTS = ("reasoning_content", "reasoning", "thinking", "thought")
"""Keys under which data sets keep a turn's thought beside its content."""

UNREAD = ("tool_calls", "function_call", "images", "image", "videos", "video", "audios", "audio")
"""Keys of a turn that a prompt can't do without, and that aren't read."""

TEXTS = ("text", "input_text", "output_text")
"""Types of parts of text."""

_KEYS = (("role", "content"), ("from", "value"))


def conversation_of(value: Any, column: str) -> tuple[str | list[Message], str | None]:
    """A prompt, and the demonstration in the assistant's turn that ends it.

    Messages have `role` and `content`, or, as ShareGPT writes them, `from` (human, gpt, system) and `value`. Content is
    text, or a list of parts `{"type": "text", "text": ...}`, whose texts are joined without anything between them.
    The last turn may be empty or null: then there is no demonstration. Raises ValueError.
    """
    if isinstance(value, str) and value.strip():
        return value, None
    if not isinstance(value, list) or not value or not all(isinstance(turn, Mapping) for turn in value):
        raise ValueError(f"'{column}' should be text, or a list of messages with 'role' and 'content'")
    place = f"'{column}' should be text, or a list of messages: turn"
    turns = [_message(turn, f"{place} {at}", last=at == len(value)) for at, turn in _from1(value)]
    if turns[-1]["role"] != "assistant":
        return turns, None
    if len(turns) == 1:
        raise ValueError(f"{place} 1 is the assistant's, and no prompt comes before it")
    if thought := next((key for key in THOUGHTS if turns[-1].get(key, "").strip()), None):
        remedy = "write it into the content, as the model should write it: <think>…</think>"
        raise ValueError(f"{place} {len(turns)} has its thought in '{thought}', where it isn't read; {remedy}")
    return turns[:-1], turns[-1]["content"]


def with_system(turns: str | list[Message], system: str | None) -> str | list[Message]:
    """A conversation behind the system prompt of its row, unless it has its own; text stays as it is."""
    if isinstance(turns, str) or not (system or "").strip() or any(turn["role"] == "system" for turn in turns):
        return turns
    return [{"role": "system", "content": str(system)}, *turns]


def _message(turn: Mapping[str, Any], place: str, *, last: bool) -> Message:
    # Arrow fills the keys that other turns have with null; a chat template takes the others.
    said = {str(key): each for key, each in turn.items() if each is not None}
    if unread := next((key for key in UNREAD if said.get(key)), None):
        raise ValueError(f"{place} has '{unread}', which isn't read; only text is")
    if last:
        said = _nothing_said(turn, said)
    for role, content in _KEYS:
        if isinstance(said.get(role), str) and content in said:
            text = _text(said[content], f"{place}, '{content}'")
            name = ROLES.get(said[role].strip().lower(), said[role])
            others = {key: each for key, each in said.items() if isinstance(each, str) and key not in (role, content)}
            return {"role": name, "content": text, **others}
    there = ", ".join(said) or "nothing"
    raise ValueError(f"{place} should have 'role' and 'content', or 'from' and 'value'; it has {there}")


def _nothing_said(turn: Mapping[str, Any], said: dict[str, Any]) -> dict[str, Any]:
    """What an assistant's turn says whose content is null: nothing."""
    for role, content in _KEYS:
        if isinstance(name := said.get(role), str) and content in turn and content not in said:
            return {**said, content: ""} if ROLES.get(name.strip().lower()) == "assistant" else said
    return said


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{place} should be text, or a list of parts of text, not {type(content).__name__}")
    return "".join(_part(part, f"{place}, part {at}") for at, part in _from1(content))


def _part(part: Any, place: str) -> str:
    if isinstance(part, str):
        return part
    text = part.get("text") if isinstance(part, Mapping) and (part.get("type") or "text") in TEXTS else None
    if not isinstance(text, str):
        kind = f"of type '{part['type']}'" if isinstance(part, Mapping) and part.get("type") else type(part).__name__
        raise ValueError(f'{place} is {kind}; only parts of text are read: {{"type": "text", "text": ...}}')
    return text


def _from1(items: Sequence[Any]) -> list[tuple[int, Any]]:
    return list(enumerate(items, start=1))
