"""Which column of a data set is which field of a problem: one mapping for every source that has columns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pydantic import model_validator

from upge import Data, InputError, Message, Problem, did_you_mean
from upge_parts.data.choices import Choices, filled, of_column, of_columns
from upge_parts.data.conversations import conversation_of, with_system
from upge_parts.data.texts import plain_columns, text_of

Row = Mapping[str, Any]

PROMPTS = ("prompt", "messages", "conversations")
"""The columns of which the first that is there holds the prompt, where none is named."""


class Columns(Data):
    """The base of sources with columns; each may be a dotted path: `reward_model.ground_truth`, `target.0.content`.

    A prompt is text or a conversation (a list of `role` and `content`, or of `from` and `value`). A conversation that
    ends with the assistant's turn is a prompt and its demonstration, unless `demonstration` names another. A column
    `system` beside a conversation is its system prompt, unless the conversation has its own. A named column must be in
    every row; its value may be null, except a prompt's.
    """

    prompt: str | None = None
    """The prompt's column; by default `prompt`, or else `messages`, or else `conversations`."""
    answer: str | None = "answer"
    """The reference answer's column; `null` if there is none, as for imitation alone."""
    answer_after: str | None = None
    """A marker in the answer's column, such as "####" in GSM8K: the answer is the text after the last one. By default
    it is the whole text."""
    choices: str | tuple[str, ...] | None = None
    """The choices of a multiple choice: a column with a list of texts or with texts and labels, or one column for each
    choice. They are added to the prompt with letters, and the answer becomes the letter of the right choice."""
    choices_seed: int | None = None
    """Shuffles each problem's choices by this number and its id alone; by default they keep the order of the data."""
    choices_template: str = "{prompt}\n\n{choices}"
    """The form of a prompt with choices: text with `{choices}` and, perhaps, `{prompt}`."""
    choice_template: str = "{letter}. {choice}"
    """The form of a choice's line: text with `{letter}` and `{choice}`."""
    demonstration: str | None = None
    """The demonstration's column; by default `demonstration`, if there is one."""
    demonstration_template: str = "{demonstration}"
    """The form of a demonstration: text with `{demonstration}` (the column's) and, perhaps, `{answer}`."""
    id: str | None = None
    """The column with the problem's id; by default `id`, if there is one, else the place in the data."""
    band: str | None = None
    """The column with the problem's difficulty; by default `band`, if there is one."""

    @model_validator(mode="after")
    def _shows_something(self) -> Columns:
        if "{demonstration}" not in self.demonstration_template:
            self.refuse(("demonstration_template",), "has no {demonstration}: every problem would be shown the same")
        for key, needed in {"choices_template": ["{choices}"], "choice_template": ["{letter}", "{choice}"]}.items():
            for each in needed:
                if each not in getattr(self, key):
                    self.refuse((key,), f"has no {each}")
        return self

    def heads(self, there: Sequence[str], plain: Collection[str] = ()) -> list[str]:
        """The columns to read of those that are there: what the mapping names, and the `plain`, of numbers and texts.

        Raises InputError for one that the mapping names and that isn't there.
        """
        named = [self.prompt, self.answer, *self._choice_columns(), self.demonstration, self.id, self.band]
        for path in filter(None, named):
            if not any(head in there for head in _heads(path)):
                raise InputError(f"there is no column {_missing(path.partition('.')[0], there)}")
        read = {head for path in filter(None, named) for head in _heads(path)}
        return [name for name in there if name in read | {*plain, *PROMPTS, "system", "demonstration", "id", "band"}]

    def problem(self, row: Row, default_id: str) -> Problem:
        """The problem in a row. Raises ValueError saying what is wrong with it."""
        name = self._text(row, "id", self.id) or default_id
        choices = self._choices(row, name)
        answer = self._answer(row) if choices is None else choices.letter
        prompt = value_at(row, self.prompt) if self.prompt else _either(row, *PROMPTS)
        turns, shown = conversation_of(prompt, self.prompt or "prompt")
        if not isinstance(turns, str):
            turns = with_system(turns, text_of(row.get("system"), "system", numbers=False))
        if choices is not None:
            turns = _asked(turns, choices.listed(self.choice_template), self.choices_template)
        demonstration = self._text(row, "demonstration", self.demonstration) or shown
        return Problem(
            id=name,
            prompt=turns,
            answer=answer,
            demonstration=told(self.demonstration_template, demonstration, answer),
            band=self._text(row, "band", self.band),
            columns=plain_columns(row),
        )

    def _answer(self, row: Row) -> str | None:
        answer = None if self.answer is None else text_of(value_at(row, self.answer), self.answer)
        if answer is None or self.answer_after is None:
            return answer
        _, found, after = answer.rpartition(self.answer_after)
        if not found:
            raise ValueError(f"'{self.answer}' has no '{self.answer_after}'")
        return after.strip()

    def _choices(self, row: Row, name: str) -> Choices | None:
        if self.choices is None:
            return None
        found = self._choices_as_they_stand(row)
        return found if self.choices_seed is None else found.shuffled(f"{self.choices_seed}/{name}")

    def _choices_as_they_stand(self, row: Row) -> Choices:
        columns = {path: value_at(row, path) for path in self._choice_columns()}
        answer = value_at(row, self.answer) if self.answer is not None else None
        if answer is not None and self.answer_after is not None:
            answer = self._answer(row)
        if isinstance(self.choices, str):
            return of_column(columns[self.choices], answer, self.choices, self.answer)
        return of_columns(columns, answer, self.answer)

    def _choice_columns(self) -> tuple[str, ...]:
        return (self.choices,) if isinstance(self.choices, str) else self.choices or ()

    def _text(self, row: Row, field: str, path: str | None) -> str | None:
        """A field's text: of the named column, which must be there, or of the one called as the field is."""
        value = row.get(field) if path is None else value_at(row, path)
        return text_of(value, path or field, numbers=field != "demonstration")


def value_at(row: Any, path: str) -> Any:
    """What stands at a dotted path of keys and list indices. Raises ValueError naming the nearest key."""
    if isinstance(row, Mapping) and path in row:
        return row[path]
    head, _, rest = path.partition(".")
    if isinstance(row, Mapping) and head in row:
        return value_at(row[head], rest) if rest else row[head]
    if isinstance(row, Sequence) and not isinstance(row, str) and head.lstrip("-").isdigit():
        if not -len(row) <= int(head) < len(row):
            raise ValueError(f"has no item {head} where there are {len(row)}")
        return value_at(row[int(head)], rest) if rest else row[int(head)]
    raise ValueError(f"has no {_missing(head, list(row) if isinstance(row, Mapping) else [])}")


def told(template: str, demonstration: str | None, answer: str | None) -> str | None:
    """A demonstration in its template; None and "" stay, for they show nothing.

    Raises ValueError where the template has an answer and the problem none.
    """
    if not demonstration:
        return demonstration
    if answer is None and "{answer}" in template:
        raise ValueError("has no answer for the {answer} of demonstration_template")
    return filled(template, demonstration=demonstration, answer=answer or "")


def gathered(kind: Columns, rows: Iterable[tuple[str, str, Row | ValueError]]) -> list[Problem]:
    """The problems of (place, default id, row or what is wrong with it). Raises InputError with the rows at fault."""
    problems, faults = [], []
    seen: dict[str, str] = {}
    for place, default_id, row in rows:
        try:
            if isinstance(row, ValueError):
                raise row
            problem = replace(kind.problem(row, default_id), place=place)
            if problem.id in seen:
                raise ValueError(f"the id '{problem.id}' is that of {seen[problem.id]} too")
            seen[problem.id] = place
            problems.append(problem)
        except ValueError as error:
            faults.append(f"{place}: {error}")
    refuse(faults)
    return problems


def refuse(faults: Sequence[str], most: int = 20) -> None:
    """Raise InputError with the first of these faults and the number of the others, if there are any."""
    if faults:
        more = [f"… and {len(faults) - most} more"] if len(faults) > most else []
        raise InputError("\n".join([*faults[:most], *more]))


def _missing(name: str, there: Iterable[str]) -> str:
    return f"'{name}'; {did_you_mean(name, there)}"


def _heads(path: str) -> list[str]:
    """The columns that a path may start with: a name with dots is one too."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _either(row: Row, *names: str) -> Any:
    there = [name for name in names if name in row]
    if there:  # rows of several forms in one table have null for the others
        return next((row[name] for name in there if row[name] is not None), None)
    raise ValueError(f"has no {_missing(names[0], row)}")


def _asked(turns: str | list[Message], choices: str, template: str) -> str | list[Message]:
    """The prompt, or the last turn of a conversation, with its choices."""
    if isinstance(turns, str):
        return filled(template, prompt=turns, choices=choices)
    return [*turns[:-1], {**turns[-1], "content": str(_asked(turns[-1]["content"], choices, template))}]
