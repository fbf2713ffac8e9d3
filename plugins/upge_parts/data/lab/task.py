"""The lab's task: shuffle a row of letters by a chain of operations.

A problem is a *state*, six distinct letters, and a *chain* of operations, one capital letter each. The answer is the
state after all operations; a blind guess is right once in 720.

    prompt         cafbde RSE?
    worked         edbfac SE,debfac E,=cebfad              the base model's own style
    short          =cebfad                                 an answer without work
    demonstration  edbfac>SE;debfac>E;=cebfad              the stronger teacher's style

The remaining operations beside each state make every step a local one, which serves chains of every length; the states
alone don't. The verifier reads only what follows the last "=". Everything is a pure function of its arguments.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["train", "test"]

SIZE = 6
"""Letters in a state."""

FAMILIAR = "abcdefghijkl"
"""Letters of the training and test problems."""

UNFAMILIAR = "mnopqrst"
"""Letters of the out-of-distribution problems: the base model has seen them, no training problem uses one."""

LETTERS = FAMILIAR + UNFAMILIAR

OPERATIONS: dict[str, Callable[[str], str]] = {
    "R": lambda state: state[::-1],  # reverse
    "L": lambda state: state[1:] + state[0],  # rotate to the left
    "S": lambda state: state[1] + state[0] + state[2:],  # swap the first two
    "E": lambda state: state[-1] + state[1:-1] + state[0],  # swap the ends
}
"""What each operation does to a state."""

TEACHER_STYLE = ">;"
"""The marks of the demonstrations. The base model has seen either mark, never the two together."""

STYLES = tuple(before + after for before in "_>:" for after in "|;/" if before + after != TEACHER_STYLE)
"""The marks of the thorough solutions that the base model once learned from."""

CHARACTERS = LETTERS + "".join(OPERATIONS) + "? =,_>:|;/"
"""Every character that a prompt or a response can hold: the tokenizer's vocabulary, one token each."""


@dataclass(frozen=True, slots=True)
class Task:
    """A state of distinct letters and the operations to apply to it, first operation first."""

    state: str
    chain: str

    def __post_init__(self) -> None:
        if len(self.state) != SIZE or len(set(self.state)) != SIZE or not set(self.state) <= set(LETTERS):
            raise ValueError(f"a state is {SIZE} distinct letters out of {LETTERS!r}, not {self.state!r}")
        if not self.chain or not set(self.chain) <= OPERATIONS.keys():
            raise ValueError(f"a chain is one or more of {''.join(OPERATIONS)!r}, not {self.chain!r}")

    @property
    def id(self) -> str:
        """The problem as a compact, reversible name: "cafbde-RSE"."""
        return f"{self.state}-{self.chain}"

    @classmethod
    def from_id(cls, name: str) -> Task:
        """The problem that `name` names. Raises ValueError if it names none."""
        state, _, chain = name.partition("-")
        return cls(state, chain)

    @property
    def side(self) -> Side:
        """Which side of the wall the problem is on: a hash of its id puts a quarter of them on the test side."""
        return "test" if hashlib.sha256(self.id.encode()).digest()[0] % 4 == 0 else "train"

    def states(self) -> list[str]:
        """The states after the first, the second … the last operation."""
        states = [self.state]
        for operation in self.chain:
            states.append(OPERATIONS[operation](states[-1]))
        return states[1:]

    def prompt(self) -> str:
        """What the model is asked."""
        return f"{self.state} {self.chain}?"

    def answer(self) -> str:
        """The final state."""
        return self.states()[-1]

    def columns(self) -> dict[str, str | float]:
        """The state, the chain, and its number of operations, by name."""
        return {"state": self.state, "chain": self.chain, "operations": len(self.chain)}

    def short(self) -> str:
        """The answer without work."""
        return f"={self.answer()}"

    def worked(self) -> str:
        """The solution in the base model's own style: the states alone. With one operation it is the short answer."""
        return "".join(f"{state}," for state in self.states()[:-1]) + self.short()

    def thorough(self, style: str) -> str:
        """The solution that writes the remaining operations beside each state; a style is the two marks around them."""
        before, after = tuple(style)
        lines = [f"{state}{before}{self.chain[done:]}{after}" for done, state in enumerate(self.states()[:-1], start=1)]
        return "".join(lines) + self.short()

    def demonstration(self) -> str:
        """The solution in the stronger teacher's style."""
        return self.thorough(TEACHER_STYLE)


def final_answer(response: str) -> str | None:
    """What follows the last "=" of a response, without surrounding space; None if there is no "="."""
    _, mark, answer = response.rpartition("=")
    return answer.strip() if mark else None


def generate(
    key: Sequence[int | str], lengths: Sequence[int], letters: str = LETTERS, side: Side | None = "train"
) -> Task:
    """One random problem of the given side (None: of either), the same for the same key on every machine.

    `key` names the draw, for instance (seed, step, index); the chain's length is uniform over `lengths`, its operations
    and the state's letters uniform too.
    """
    source = random.Random("/".join(map(str, key)))  # a string seeds through SHA-512, whatever the hash randomisation
    length = source.choice(lengths)
    while True:
        state = "".join(source.sample(letters, SIZE))
        task = Task(state, "".join(source.choices(list(OPERATIONS), k=length)))
        if side is None or task.side == side:
            return task
