"""Problems from the generators of reasoning_gym."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from pydantic import Field, model_validator

from upge import Context, Data, InputError, Problem
from upge_parts.data.columns import told, value_at
from upge_parts.data.gym import made, name_of
from upge_parts.data.session import InMemory
from upge_parts.data.texts import plain_columns, text_of


class ReasoningGym(Data):
    """Problems of a generator of reasoning_gym. The reward `reasoning_gym` scores them with the generator's own scorer.

        entry i  =  f(generator, configuration, seed + i),   i = 0 … size − 1

    The configuration is that generator's, as reasoning_gym names it. Entries depend on the seeds given here alone; the
    run's seed orders them. Needs the extra `reasoning-gym`. Source: arXiv 2505.24760.
    """

    packages: ClassVar = {"reasoning_gym": "upge[reasoning-gym]"}

    generator: str = Field(min_length=1)
    """The generator's name: `gsm_symbolic`, `chain_sum`, …"""
    configuration: dict[str, Any] = Field(default_factory=dict, examples=[{"min_terms": 2}])
    """Its settings except `size` and `seed`; by default the generator's own."""
    size: int = Field(default=1000, ge=1)
    """The number of training problems."""
    seed: int = Field(default=0, ge=0)
    """The seed of the first training problem; each further problem has the next seed."""
    evaluation: dict[str, dict[str, Any]] = Field(
        default_factory=dict, examples=[{"test": {"seed": 1000000, "size": 100}}]
    )
    """For each evaluation split its `size` and `seed`, and settings that differ, for example for harder problems."""
    disjoint: bool = False
    """Whether training problems with a prompt of an evaluation split are left out: small generators repeat."""
    demonstration: str | None = None
    """The worked solution's place in an entry: `metadata.answer_cot` for `gsm_symbolic`; by default none."""
    demonstration_template: str = "{demonstration}"
    """The form of a demonstration: text with `{demonstration}` (the solution) and, perhaps, `{answer}`."""

    @model_validator(mode="after")
    def _apart(self) -> ReasoningGym:
        for key in {"size", "seed"} & set(self.configuration):
            self.refuse(("configuration", key), f"'{key}' is a setting of its own", key=True)
        for name, split in self.evaluation.items():
            for key, least in (("size", 1), ("seed", 0)):
                number = split.get(key)
                if not isinstance(number, int) or isinstance(number, bool) or number < least:
                    self.refuse(("evaluation", name), f"needs '{key}', a whole number of at least {least}")
            # The generators draw entry i with seed + i, so neighbouring seeds give nearly the same problems.
            if split["seed"] < self.seed + self.size and self.seed < split["seed"] + split["size"]:
                last = self.seed + self.size - 1
                message = f"its problems would be training's, which have the seeds {self.seed} to {last}"
                self.refuse(("evaluation", name, "seed"), message)
        return self

    @contextmanager
    def open(self, context: Context) -> Iterator[InMemory]:
        training = self.problems({"size": self.size, "seed": self.seed})
        evaluation = {name: self.problems(split) for name, split in self.evaluation.items()}
        if self.disjoint:
            asked = {each.prompt for split in evaluation.values() for each in split}
            training = [each for each in training if each.prompt not in asked]
            if not training:
                raise InputError(f"{self.generator}: evaluation has all of training's prompts; raise data.size")
        yield InMemory(training, evaluation, context.seed)

    def problems(self, split: Mapping[str, Any]) -> list[Problem]:
        """The problems of the configuration with these changes. Raises InputError."""
        configuration = {**self.configuration, **split}
        entries = made(self.generator, configuration)
        return [
            self._problem(entries[index], name_of(self.generator, configuration, index))
            for index in range(configuration["size"])
        ]

    def _problem(self, entry: Mapping[str, Any], name: str) -> Problem:
        # A puzzle with many solutions may come with none.
        answer = text_of(entry["answer"], "answer")
        try:
            shown = value_at(entry, self.demonstration) if self.demonstration else None
            demonstration = told(self.demonstration_template, text_of(shown, self.demonstration or ""), answer)
        except ValueError as error:
            raise InputError(f"{name}: {error}") from error
        columns = plain_columns({**entry.get("metadata", {}), **entry})
        return Problem(name, entry["question"], answer, demonstration, columns=columns)
