"""Marks of the tokens at which a text, or a sequence of tokens, ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from upge import BatchField, Context, InputError, Trajectory

if TYPE_CHECKING:
    from torch import Tensor

Tokens = Sequence[int]


class TokenMarks(BatchField):
    r"""1 for each token of a response at which an occurrence of a text, or of token ids, ends; 0 for the others.

        field_t = 1[an occurrence ends in token t]

        fields:
          again: {use: tokens, text: "Wait"}
          breaks: {use: tokens, ids: [198, 198]}

    An occurrence of `text` ends in the token that completes its last character, and may begin anywhere in an earlier
    token: where token boundaries lie doesn't matter. An occurrence of `ids` is these tokens one after the other.
    Occurrences may overlap, and lie within the response: the prompt's opening of it doesn't count. The text of a
    response is that which rewards get, without end-of-sequence and padding tokens; `ids` may name those.
    Shapes: (T,), per token; never NaN. Units: dimensionless, {0, 1}. Source: none; it is a means for other methods.
    """

    per: ClassVar[Literal["token"]] = "token"

    text: str | None = Field(default=None, min_length=1)
    """The text; case matters. Give this or `ids`."""
    ids: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(), examples=[(198, 198)])
    """The token ids, one after the other."""

    @model_validator(mode="after")
    def _one(self) -> TokenMarks:
        if (self.text is None) == (not self.ids):
            self.lack("give 'text' or 'ids'" if self.text is None else "give 'text' or 'ids', and not both")
        return self

    @contextmanager
    def open(self, context: Context) -> Iterator[Marks]:
        """Raises InputError for an id that is no token, and for a text without a tokenizer."""
        policy = context.policy
        if self.text is None:
            beyond = [] if policy is None else [each for each in self.ids if each >= len(policy.tokenizer)]
            if beyond:
                last = len(policy.tokenizer) - 1
                raise InputError(f"{context.place}: there is no token {beyond[0]}; the tokenizer's go up to {last}")
            yield Marks(lambda response: ends_of_ids(self.ids, response))
        elif policy is None:
            raise InputError("the field tokens finds a text by the policy's tokenizer, and here is none")
        else:
            text, decode = self.text, policy.templater().text
            yield Marks(lambda response: ends_of_text(text, response, decode))


@dataclass(frozen=True)
class Marks:
    """What finds the tokens at which an occurrence ends."""

    ends: Callable[[Tokens], set[int]]

    def read(self, step: int, trajectories: Sequence[Trajectory]) -> Tensor:
        """(T,) 1.0 where an occurrence ends, else 0.0."""
        import torch

        del step
        marks: list[float] = []
        for each in trajectories:
            ends = self.ends(each.response)
            marks += [float(place in ends) for place in range(len(each.response))]
        return torch.tensor(marks, dtype=torch.float32)


def ends_of_ids(ids: Tokens, response: Tokens) -> set[int]:
    """The places in a response at which these ids end."""
    size = len(ids)
    starts = range(len(response) - size + 1)
    return {start + size - 1 for start in starts if tuple(response[start : start + size]) == tuple(ids)}


def ends_of_text(text: str, response: Tokens, decode: Callable[[Tokens], str]) -> set[int]:
    """The places in a response of the tokens in which an occurrence of a text ends."""
    whole = decode(response)
    ends, start = [], whole.find(text)
    while start >= 0:
        ends.append(start + len(text))
        start = whole.find(text, start + 1)
    return set(_places(Span(response, 0, len(response), whole), ends, decode))


@dataclass(frozen=True)
class Span:
    """The tokens of a response from one place up to another, and their text in it."""

    response: Tokens
    start: int
    end: int
    text: str


def _places(span: Span, ends: Sequence[int], decode: Callable[[Tokens], str]) -> Iterator[int]:
    """The token in which each of these ends lies, counted in characters of the span's text, above 0."""
    if not ends:
        return
    halves = _halves(span, decode) if span.end - span.start > 1 else None
    if halves is None:  # one token, or several that are one character, which the last of them completes
        yield span.end - 1
        return
    left, right = halves
    size = len(left.text)
    yield from _places(left, [end for end in ends if end <= size], decode)
    yield from _places(right, [end - size for end in ends if end > size], decode)


def _halves(span: Span, decode: Callable[[Tokens], str]) -> tuple[Span, Span] | None:
    """A span in two whose texts are its text, cut as near to its middle as no character is cut; None: it can't be."""
    middle = (span.start + span.end) // 2
    for cut in sorted(range(span.start + 1, span.end), key=lambda place: abs(place - middle)):
        left, right = (_text(span.response, start, end, decode) for start, end in ((span.start, cut), (cut, span.end)))
        if left + right == span.text:
            return Span(span.response, span.start, cut, left), Span(span.response, cut, span.end, right)
    return None


def _text(response: Tokens, start: int, end: int, decode: Callable[[Tokens], str]) -> str:
    """What tokens add to the text before them: SentencePiece, for one, drops the blank that a text begins with."""
    before = response[max(start - 1, 0) : start]
    return decode(response[start - len(before) : end])[len(decode(before)) :]
