"""The conformance suite: what every part owes the machine, checked on drawn parameters and batches.

`check_part` and `check_estimator` are for pytest; `upge check` prints what `examined` finds, with the smallest example.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import given as asked_of
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable

from upge.asking import PartError, line_of
from upge.batch import Batch
from upge.estimator import Estimator
from upge.parts import Factor, Mask, Part, Switch
from upge.recipe.reading import parse_value, plain
from upge.recipe.sources import Source
from upge.testing import laws
from upge.testing.batches import EMPTY, PINNED, RICH, WORDLESS, Case
from upge.testing.drawing import cases, parts
from upge.testing.hosting import host


@dataclass(frozen=True)
class Finding:
    """How a part stands to one law. `failure` is None where it keeps it, else what went wrong; `example` on what."""

    law: str
    failure: str | None = None
    example: str = ""

    def __str__(self) -> str:
        if self.failure is None:
            return f"{self.law}: kept"
        return f"{self.law}: {self.failure}" + (f"\n    on {self.example}" if self.example else "")


def check_part(kind: type[Part], *, examples: int = 50, **parameters: Any) -> None:
    """Raise AssertionError, with every broken law and its smallest example, unless a part keeps them all.

    Args:
        kind: the part's class. parameters: those that are not to be drawn. examples: how many draws a law gets.
    """
    broken = [finding for finding in examined(kind, parameters, examples=examples) if finding.failure is not None]
    if broken:
        raise AssertionError(f"{kind.__name__} breaks {_laws(broken)}\n" + "\n".join(map(str, broken)))


def check_estimator(estimator: Estimator, *, examples: int = 50) -> None:
    """Raise AssertionError unless an estimator, a recipe's say, keeps the laws on drawn batches.

    Splitting into micro-batches and ranks, dropping, order, finiteness, detachment, and that it is a value.
    """
    broken = [f for f in examined_estimator(estimator, examples=examples) if f.failure is not None]
    if broken:
        raise AssertionError(f"the estimator breaks {_laws(broken)}\n" + "\n".join(map(str, broken)))


def examined_estimator(estimator: Estimator, *, examples: int = 50) -> Iterator[Finding]:
    """How an estimator stands to the laws, one after the other."""
    return _findings(ESTIMATOR_LAWS, st.just(estimator), examples)


def examined(kind: type[Part], given: Mapping[str, Any] | None = None, *, examples: int = 50) -> Iterator[Finding]:
    """How a part stands to every law that concerns its slot, one after the other."""
    yield _documented(kind)
    chosen = PART_LAWS if issubclass(kind, Factor | Switch) else {}
    if not chosen and any(
        field.is_required() for name, field in kind.model_fields.items() if name not in (given or {})
    ):
        return  # a source of data or an engine: its parameters name what only its author has
    drawn = parts(kind, given) if chosen else st.just(kind.model_validate(dict(given or {})))
    yield from _findings({"it survives the way through YAML": survives_yaml} | chosen, drawn, examples)


def _laws(broken: Sequence[Finding]) -> str:
    return "1 law" if len(broken) == 1 else f"{len(broken)} laws"


# The laws, each a function of a part (or an estimator), a batch and a seed.

Law = Callable[[Any, Case, int], None]


def survives_yaml(part: Part, case: Case, seed: int) -> None:
    """part → YAML → part is the identity, and equal parts hash alike."""
    del case, seed
    parameters = {key: value for key, value in part.dump().items() if key != "use"}
    node = parse_value(Source("part", json.dumps(parameters)))
    again = type(part).model_validate(plain(node) if node is not None else {})
    assert again == part, f"its YAML makes {again!r}"
    assert hash(again) == hash(part), "an equal part has another hash"


def _keeps_on_policy(part: Part, case: Case, seed: int) -> None:
    del seed
    if isinstance(part, Mask) and part.trust_region:
        value = case.batch.value
        assert value is not None
        for advantage in (value, 0 * value, value.abs(), -value.abs()):
            laws.check_trust_region(part, case.batch, advantage)


def _by_batch(check: Callable[[Any, Batch], None]) -> Law:
    return lambda part, case, seed: check(part, case.batch)


def _hosted(check: Callable[[Estimator, Batch], None]) -> Law:
    return lambda part, case, seed: check(host(part), case.batch)


def _split(estimator: Estimator, case: Case, seed: int) -> None:
    ranks, pieces, step = 1 + seed % 3, 1 + seed % 4, seed // 16 % 3
    laws.check_splitting(estimator, case.batch, ranks=ranks, pieces=pieces, seed=seed, step=step)


def _finite(estimator: Estimator, case: Case, seed: int) -> None:
    laws.check_finite(estimator, case.batch, step=seed % 4)


def _is_a_value(estimator: Estimator, case: Case, seed: int) -> None:
    del case, seed
    again = Estimator.model_validate(dict(estimator))
    assert again == estimator
    assert hash(again) == hash(estimator)


PART_LAWS: dict[str, Law] = {
    "its numbers are detached, of the right shape, and not NaN": _by_batch(laws.check_detached),
    "it reads what it declares, and nothing else": lambda part, case, seed: laws.check_declared_needs(part, RICH.batch),
    "the same batch gives the same numbers": _by_batch(laws.check_repeatable),
    "it works in single precision": _by_batch(laws.check_single_precision),
    "an empty batch contributes exactly 0": lambda part, case, seed: laws.check_contributes_nothing(
        host(part), EMPTY.batch
    ),
    "it keeps double precision": _by_batch(laws.check_double_precision),
    "its gradient is finite, at later steps too": lambda part, case, seed: _finite(host(part), case, seed),
    "gradient flows to logp alone": _hosted(laws.check_gradient_flows_only_to_logp),
    "the order of trajectories does not matter": lambda part, case, seed: laws.check_permutation(
        host(part), case.batch, seed=seed
    ),
    "micro-batches and ranks do not matter": lambda part, case, seed: _split(host(part), case, seed),
    "what does not matter can be dropped": _hosted(laws.check_dropping),
    "a trust region never masks on-policy data: g(1) = 1": _keeps_on_policy,
}

ESTIMATOR_LAWS: dict[str, Law] = {
    "it is a value": _is_a_value,
    "an empty batch contributes exactly 0": lambda it, case, seed: laws.check_contributes_nothing(it, EMPTY.batch),
    "its gradient is finite, at later steps too": _finite,
    "gradient flows to what its terms push on alone": _by_batch(laws.check_gradient_flows_only_to_logp),
    "the order of trajectories does not matter": lambda it, case, seed: laws.check_permutation(
        it, case.batch, seed=seed
    ),
    "micro-batches and ranks do not matter": _split,
    "what does not matter can be dropped": _by_batch(laws.check_dropping),
}


# How they are asked.


def _documented(kind: type[Part]) -> Finding:
    law, text = (
        "its docstring has a line, and for a factor formula, shapes and source",
        inspect.cleandoc(kind.__dict__.get("__doc__") or ""),
    )
    wanted = {"a first line that ends with a full stop": r"\A.+\.(\n|\Z)"}
    if issubclass(kind, Factor | Switch):
        wanted |= {"an indented formula": r"^    \S", "'Shapes:'": r"\bShapes:", "'Source:'": r"\bSource:"}
    missing = [what for what, pattern in wanted.items() if re.search(pattern, text, flags=re.MULTILINE) is None]
    return Finding(law, f"it lacks {', '.join(missing)}" if missing else None)


def _findings(chosen: Mapping[str, Law], drawn: st.SearchStrategy[Any], examples: int) -> Iterator[Finding]:
    for name, law in chosen.items():
        yield _finding(name, law, drawn, examples)


def _finding(name: str, law: Law, drawn: st.SearchStrategy[Any], examples: int) -> Finding:
    """The smallest example on which a law breaks, as Hypothesis shrinks it: the last one that it tries."""
    smallest: list[Any] = []

    def ask(subject: Any, case: Case, seed: int) -> None:
        try:
            law(subject, case, seed)
        except Exception:
            smallest[:] = [subject, case, seed]
            raise

    try:
        _asked(ask, drawn, examples)()
    except Unsatisfiable:
        return Finding(name, "no valid parameters could be drawn; give them: name=value")
    except Exception as error:
        subject, case, _ = smallest or ("", "", 0)
        reason = str(error).partition("\n\n")[0] or "it does not hold"
        said = reason if isinstance(error, AssertionError | PartError) else _raised(error, reason, subject)
        return Finding(name, said, f"{subject!r}\n    and {case!r}")
    return Finding(name)


def _raised(error: Exception, reason: str, subject: object) -> str:
    """What a part's own code raised, and at which of its lines."""
    where = f" ({line_of(error, type(subject))})" if isinstance(subject, Part) else ""
    return f"{type(error).__name__}: {reason}{where}"


def _asked(ask: Callable[[Any, Case, int], None], drawn: st.SearchStrategy[Any], examples: int) -> Callable[[], None]:
    configured = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    batches = st.sampled_from([*PINNED, EMPTY, WORDLESS]) | cases()

    def test(subject: Any, case: Case, seed: int) -> None:
        ask(subject, case, seed)

    asked: Callable[[], None] = configured(asked_of(drawn, batches, st.integers(0, 2**16))(test))
    return asked
