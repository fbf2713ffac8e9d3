"""How problems and demonstrations become tokens: one templating, for rollouts and demonstrations alike.

The prompt's ids always come from the same call; a response's ids, drawn or demonstrated, are appended to them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from upge.errors import ModelError
from upge.model.decoder import Decoder
from upge.model.template_process import RenderingError, renderer
from upge.types import Message, Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TAG = re.compile(r"<[^<>\s/][^<>\s]*>|\[[A-Z_]+\]|◁[^◁▷\s/]+▷")
"""What opens a part of a response in a chat template's words: `<think>`, `[THINK]`, `◁think▷`."""

_TAGS = re.compile(r"(?:<(?!(?:assistant|bot|model|user|human|system)>)[a-z][\w.:-]*>\s*)+\Z", re.IGNORECASE)
"""The tags that a plain template ends with. `<|assistant|>` and the like are no part of the response."""

_LONGEST = 2000
"""Characters of a template's end that a demonstration may repeat."""


def tags_at_end(text: str) -> str:
    """The tags at the end of a text, for example `<think>` and a line break; "" if there are none."""
    match = _TAGS.search(text)
    return match[0] if match else ""


def repeated(tail: str, opening: str, text: str) -> int:
    """How many characters at the beginning of a demonstration are at the end of its prompt already.

    What counts is the template's own: `tail` is what it writes after the last message, and `opening`, the end of that,
    is how it begins the response. White space around what is repeated may differ.

        tail "Assistant: <think>\\n", opening "<think>\\n", text "<think>2 + 2"  →  7
    """
    core, body = opening.strip(), text.lstrip()
    if not core or not body:
        return 0
    tail = tail[-_LONGEST:]
    gap = tail[len(tail.rstrip()) :]
    for start, character in enumerate(tail):
        piece = tail[start:].rstrip() if character == body[0] else ""
        if piece and body.startswith(piece) and _opens(piece, core) and not _within_word(body, len(piece)):
            rest = body[len(piece) :]
            space = len(gap) if rest.startswith(gap) else len(rest) - len(rest.lstrip())
            return len(text) - len(rest) + space
    return 0


def _opens(piece: str, core: str) -> bool:
    """Whether a piece of the template's end has all of the opening, or begins at one of its tags."""
    return piece.endswith(core) or _TAG.match(piece) is not None


def _within_word(text: str, place: int) -> bool:
    return text[place - 1].isalnum() and text[place : place + 1].isalnum()


_FIELD = re.compile(r"\{(prompt|system)\}")
_SENTINEL, _ASKED = "upge0sentinel", "upge0asked"


@dataclass(frozen=True)
class Prompt:
    """A problem as the model reads it.

    Attributes:
        text, tokens: the whole prompt.
        tail: what the template writes after the last message.
        opening: the end of it that begins the response, such as `<think>` and a line break; mostly "".
    """

    text: str
    tokens: tuple[int, ...]
    tail: str = ""
    opening: str = ""

    def repeated(self, text: str) -> int:
        """How many characters at a demonstration's beginning repeat the opening; see `upge.model.chat_template`."""
        return repeated(self.tail, self.opening, text)


class Templater:
    """Puts problems to a model and reads its responses.

    With a chat template and no `template`, prompts go through the chat template, generation prompt included; a plain
    text is the user's turn, and `system` comes first unless the problem brings a system turn of its own. Otherwise the
    prompt is `template` with `{prompt}` and `{system}` filled in (no other brace has a meaning), and the tokenizer adds
    its beginning-of-sequence token if it has one, once. Of a conversation, a plain template takes one user turn, with
    or without a system turn before it.

    Args:
        tokenizer: the policy's.
        template: with `{prompt}`, and `{system}` if there is a system prompt. None: the tokenizer's chat template, else
            the prompt alone, after the system prompt and an empty line if there is one.
        system: the system prompt.
        stop_ids: the tokens that the model stops at; by default the tokenizer's end of sequence.
        size: how many token ids the model has embeddings for; None: it isn't known.

    Raises:
        ModelError: `template` has no `{prompt}`, or no `{system}` for the system prompt; or nothing ends a response.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str | None = None,
        system: str | None = None,
        *,
        stop_ids: Sequence[int] | None = None,
        size: int | None = None,
    ) -> None:
        self.tokenizer, self.size = tokenizer, size
        self.system = system
        self.chat = template is None and bool(tokenizer.chat_template)
        self.plain = template is not None
        self.template = template or ("{system}\n\n{prompt}" if system else "{prompt}")
        self.stop_ids = tuple(_ids(tokenizer.eos_token_id) if stop_ids is None else stop_ids)
        _check(self.template, None if self.chat else system)
        self.end_id = self._end()
        self.decoder = Decoder(tokenizer, self.stop_ids, self.end_id if self.chat else None)

    def prompt(self, problem: Problem) -> tuple[int, ...]:
        """The ids that a response to `problem` follows. Raises ModelError where the template can't take it."""
        return self.put(problem).tokens

    def put(self, problem: Problem) -> Prompt:
        """`problem` as the model reads it.

        Raises ModelError where the template can't take it, or writes a token that the model has no embedding for.
        """
        if self.chat:
            turns = self._turns(problem)
            text = self._render(turns)
            _refuse_lost(turns, text, problem)
            tail = opening = self._opening if text.endswith(self._opening) else ""
        else:
            fields = self._fields(problem)
            text = _FIELD.sub(lambda match: fields[match[1]], self.template)
            tail = _FIELD.split(self.template)[-1]
            opening = tags_at_end(tail)
        tokens = self._known(self._ids(text, special=not self.chat), f"problem {problem.id}: its prompt")
        return Prompt(text, tokens, tail, opening)

    def response(self, text: str, prompt: Prompt | None = None) -> tuple[int, ...]:
        """The ids of a demonstrator's response, ending with the token that the model ends a response with.

        None where there is nothing but white space in it. After a `prompt`, what that opens the response with itself is
        taken once, and the two are encoded as one text where this gives the prompt's own ids: no blank comes between.
        Raises ModelError for a token that the model has no embedding for.
        """
        suffix = text if prompt is None else text[prompt.repeated(text) :]
        ids = self._known(self._following(prompt, suffix), "its demonstration")
        if not self.text(ids).strip():
            return ()
        # Data that were written by a chat template have its end of a turn, and often a line break behind that.
        ended = next((place for place in range(len(ids), 0, -1) if ids[place - 1] in self.stop_ids), 0)
        if ended and not self.text(ids[ended:]).strip():
            return ids[:ended]
        return (*ids, self.end_id)

    def text(self, tokens: Sequence[int]) -> str:
        """The text of response tokens: of all but end-of-sequence and padding tokens."""
        return self.decoder.text(tokens)

    def _following(self, prompt: Prompt | None, text: str) -> tuple[int, ...]:
        """The ids of a text after a prompt.

        By themselves they may begin with a blank, as SentencePiece puts one before a text, which the model never draws
        after a line break.
        """
        if prompt is not None:
            whole = self._ids(prompt.text + text, special=not self.chat)
            if whole[: len(prompt.tokens)] == prompt.tokens:
                return whole[len(prompt.tokens) :]
        return self._ids(text, special=False)

    def _known(self, ids: tuple[int, ...], what: str) -> tuple[int, ...]:
        """The ids. Raises ModelError unless the model has an embedding for each."""
        unknown = next((token for token in ids if self.size is not None and token >= self.size), None)
        if unknown is not None:
            raise ModelError(f"{what} has {self._beyond(unknown)}; keep it out of the data and the template")
        return ids

    def _beyond(self, token: int) -> str:
        name = self.tokenizer.convert_ids_to_tokens(token)
        last = (self.size or 0) - 1
        return f"the token '{name}' ({token}), which the model has no embedding for (they go up to {last})"

    def _turns(self, problem: Problem) -> list[Message]:
        """The conversation that `problem` opens, with the system prompt where it has none of its own."""
        if isinstance(problem.prompt, str):
            turns: list[Message] = [{"role": "user", "content": problem.prompt}]
        else:
            turns = [dict(turn) for turn in problem.prompt]
        if self.system and not any(turn.get("role") == "system" for turn in turns):
            turns = [{"role": "system", "content": self.system}, *turns]
        return turns

    def _fields(self, problem: Problem) -> dict[str, str]:
        """The values of `{prompt}` and `{system}` in a plain template."""
        if isinstance(problem.prompt, str):
            return {"prompt": problem.prompt, "system": self.system or ""}
        turns = self._turns(problem)
        roles = [turn.get("role") for turn in turns]
        if not self.plain:
            hint = "the tokenizer has no chat template for it: set data.template, for example '{prompt}'"
            raise ModelError(f"problem {problem.id}: its prompt is a conversation, and {hint}")
        if roles not in (["user"], ["system", "user"]):
            hint = "data.template takes one user turn, with or without a system turn before it"
            raise ModelError(f"problem {problem.id}: a conversation of {', '.join(map(str, roles))}; {hint}")
        if len(turns) == 2 and turns[0]["content"].strip() and "{system}" not in self.template:
            raise ModelError(f"problem {problem.id}: data.template has no {{system}} for its system prompt")
        return {"prompt": turns[-1]["content"], "system": turns[0]["content"] if len(turns) == 2 else ""}

    def _render(self, turns: list[Message], *, generation: bool = True) -> str:
        try:
            template, tokens = self.tokenizer.get_chat_template(), self.tokenizer.special_tokens_map
            return renderer().render(template, turns, tokens, generation=generation)
        except (RenderingError, ValueError) as error:  # ValueError: several templates, and none is the default
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            roles = ", ".join(turn.get("role", "no role") for turn in turns)
            raise ModelError(f"the tokenizer's chat template can't take turns by {roles}: {reason}") from error

    def _ids(self, text: str, *, special: bool) -> tuple[int, ...]:
        """Token ids; `special` adds what the tokenizer puts before a text, once, and nothing that it puts after it."""
        bare = list(self.tokenizer.encode(text, add_special_tokens=False))
        if not special:
            return tuple(bare)
        full = list(self.tokenizer.encode(text, add_special_tokens=True))
        if full[-1:] == [self.tokenizer.eos_token_id] and bare[-1:] != full[-1:]:
            full.pop()
        if full[:1] == [self.tokenizer.bos_token_id] and full[1:2] == full[:1] and bare[1:2] != full[:1]:
            del full[0]
        return tuple(full)

    def _end(self) -> int:
        """The stop token that ends a response: what the chat template writes after a turn, else the end of sequence."""
        if not self.stop_ids:
            beyond = [self._beyond(token) for token in _ids(self.tokenizer.eos_token_id)]
            lacking = "the tokenizer has no end-of-sequence token, nor has the model's config"
            problem = f"the tokenizer's end of sequence is {beyond[0]}" if beyond else lacking
            raise ModelError(f"nothing ends a response: {problem}; set eos_token in the tokenizer's files")
        after = self._after_a_turn() if self.chat else ()
        end_ids = tuple(_ids(self.tokenizer.eos_token_id))
        return next(token for token in (*after, *end_ids, *self.stop_ids) if token in self.stop_ids)

    def _after_a_turn(self) -> tuple[int, ...]:
        """The ids that the chat template puts right after an assistant's turn; none if it can't render one."""
        turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _SENTINEL}]
        try:
            _, sentinel, after = self._render(turns, generation=False).rpartition(_SENTINEL)
        except ModelError:
            return ()
        return self._ids(after, special=False)[:1] if sentinel else ()

    @cached_property
    def _opening(self) -> str:
        """The beginning of the response in the generation prompt: the part that no other assistant turn begins with.

        The turn is looked at as an earlier one of the conversation, since some templates give the last one a thought.
        """
        turns_of_probe = self._turns(Problem("", _ASKED, ""))
        turn, more = {"role": "assistant", "content": _SENTINEL}, {"role": "user", "content": "Hello"}
        for turns in ([*turns_of_probe, turn, more], [*turns_of_probe, turn]):
            try:
                prompt = self._render(turns_of_probe)
                head, sentinel, _ = self._render(turns, generation=False).partition(_SENTINEL)
            except ModelError:
                continue
            if sentinel and _ASKED in head and prompt.startswith(head):
                opening = prompt[len(head) :]
                return opening if opening.strip() else ""
        return ""


def _refuse_lost(turns: Sequence[Message], text: str, problem: Problem) -> None:
    """Raise ModelError where a template leaves a system prompt or a user's turn out without a word.

    It may leave out an assistant's thought, or write a tool's answer in another form.
    """
    for turn in turns:
        role, content = turn["role"], turn["content"].strip()
        if role in ("system", "developer", "user") and not _has_words_of(text, content):
            hint = "put it into the user's turn, or set data.template"
            where = f" of problem {problem.id}" if problem.id else ""
            raise ModelError(f"the tokenizer's chat template leaves out the turn by {role}{where}; {hint}")


def _has_words_of(text: str, content: str) -> bool:
    """Whether one of the lines of a turn is in the text; a template may write the blanks and the brackets anew."""
    lines = [line.strip() for line in content.splitlines() if line.strip()]
    return not lines or any(line in text for line in lines)


def _check(template: str, system: str | None) -> None:
    fields = set(_FIELD.findall(template))
    if "prompt" not in fields:
        raise ModelError(f"data.template: {template!r} has no {{prompt}}; it would put the same text for every problem")
    if system and "system" not in fields:
        raise ModelError(f"data.template: {template!r} has no {{system}}, so data.system would go unused")


def _ids(value: int | Sequence[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
