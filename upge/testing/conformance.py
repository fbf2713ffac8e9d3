"""The conformance suite: what every part owes the machine, checked on drawn parameters and batches.

`check_part` and `check_estimator` are for pytest; `upge check` prints what `examined` finds, with the smallest example.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import given as asked_of
from hypothesis import strategies as st
from hypothesis.errors import Flaky, Unsatisfiable

from upge.estimator.batch import Batch
from upge.estimator.estimator import Estimator
from upge.estimator.part_errors import PartError, line_of
from upge.part import ESTIMATING, Mask, Part
from upge.recipe.faults import Source
from upge.recipe.yaml import parse_value, plain
from upge.testing import laws, part_laws, scenes, sessions
from upge.testing.batches import CORNERS, EMPTY, PINNED, WORDLESS, Case
from upge.testing.fixtures import host
from upge.testing.scenes import batch_for
from upge.testing.strategies import cases, corner_parts, parts


@dataclass(frozen=True)
class Finding:
    """The result of one law for a part. `failure` is None if the part satisfies it, else what went wrong; `example` is
    the input."""

    law: str
    failure: str | None = None
    example: str = ""

    def __str__(self) -> str:
        if self.failure is None:
            return f"{self.law}: kept"
        return f"{self.law}: {self.failure}" + (f"\n    on {self.example}" if self.example else "")


def check_part(kind: type[Part], *, examples: int = 50, **parameters: Any) -> None:
    """Raise AssertionError, with every broken law and its smallest example, unless a part satisfies them all.

    Args:
        kind: the part's class. parameters: those that are not to be drawn. examples: how many draws a law gets.
    """
    broken = [finding for finding in examined(kind, parameters, examples=examples) if finding.failure is not None]
    if broken:
        raise AssertionError(f"{kind.__name__} breaks {_laws(broken)}\n" + "\n".join(map(str, broken)))


def check_estimator(estimator: Estimator, *, examples: int = 50) -> None:
    """Raise AssertionError unless an estimator, for example a recipe's, satisfies the laws on drawn batches.

    Splitting into micro-batches and ranks, dropping, order, finiteness, detachment, and that it is a value.
    """
    broken = [f for f in examined_estimator(estimator, examples=examples) if f.failure is not None]
    if broken:
        raise AssertionError(f"the estimator breaks {_laws(broken)}\n" + "\n".join(map(str, broken)))


def examined_estimator(estimator: Estimator, *, examples: int = 50) -> Iterator[Finding]:
    """Check an estimator against the laws, one after the other."""
    return _findings(ESTIMATOR_LAWS, st.just(estimator), examples)


def examined(kind: type[Part], given: Mapping[str, Any] | None = None, *, examples: int = 50) -> Iterator[Finding]:
    """Check a part against every law of its slot, one after the other."""
    yield _documented(kind)
    given = dict(given or {})
    if issubclass(kind, ESTIMATING):
        chosen, corners = {"it survives the way through YAML": survives_yaml} | PART_LAWS, corner_parts(kind, given)
        yield from _findings(chosen, parts(kind, given), examples, corners)
        return
    opened = sessions.openable(kind, given)
    if opened:  # without, its parameters name what only its author has
        yield from _findings({"it survives the way through YAML": survives_yaml}, st.just(opened[0]), 1)
        yield from (Finding(law, failure, example) for law, failure, example in sessions.broken_laws(opened, examples))


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
        batch = batch_for(part, case)
        assert batch.value is not None
        for advantage in (batch.value, 0 * batch.value, batch.value.abs(), -batch.value.abs()):
            laws.check_trust_region(part, batch, advantage)


def _by_batch(check: Callable[[Any, Batch], None]) -> Law:
    return lambda asked, case, seed: check(asked, batch_for(asked, case))


def _hosted(check: Callable[[Estimator, Batch], None]) -> Law:
    return lambda part, case, seed: check(host(part), batch_for(part, case))


def _detached(part: Part, case: Case, seed: int) -> None:
    laws.check_detached(part, batch_for(part, case))
    part_laws.check_finite_numbers(part, case, seed)


def _split(estimator: Estimator, case: Case, seed: int) -> None:
    ranks, pieces, step = 1 + seed % 3, 1 + seed % 4, seed // 16 % 3
    laws.check_splitting(estimator, batch_for(estimator, case), ranks=ranks, pieces=pieces, seed=seed, step=step)


def _split_part(part: Part, case: Case, seed: int) -> None:
    part_laws.check_ranks(part, case, seed)
    part_laws.check_pieces(part, case, seed)
    _split(host(part), case, seed)


def _ordered(part: Part, case: Case, seed: int) -> None:
    part_laws.check_order(part, case, seed)
    laws.check_permutation(host(part), batch_for(part, case), seed=seed)


def _dropped(part: Part, case: Case, seed: int) -> None:
    part_laws.check_dropped(part, case, seed)
    part_laws.check_counted(part, case, seed)
    laws.check_dropping(host(part), batch_for(part, case))


def _double(part: Part, case: Case, seed: int) -> None:
    laws.check_double_precision(part, batch_for(part, case))
    part_laws.check_double(part, case, seed)


def _finite(estimator: Estimator, case: Case, seed: int) -> None:
    laws.check_finite(estimator, batch_for(estimator, case), step=seed % 4)


def _is_a_value(estimator: Estimator, case: Case, seed: int) -> None:
    del case, seed
    again = Estimator.model_validate(dict(estimator))
    assert again == estimator
    assert hash(again) == hash(estimator)


# The most telling come first: what breaks on two ranks may show in float32 or in another order by a tie alone.
PART_LAWS: dict[str, Law] = {
    "its numbers are detached, of the right shape, and finite": _detached,
    "it reads what it declares, and nothing else": part_laws.check_reads,
    "the same batch gives the same numbers": part_laws.check_pure,
    "its state can be saved": part_laws.check_state,
    "micro-batches and ranks do not matter": _split_part,
    "what does not matter can be dropped": _dropped,
    "the order of trajectories does not matter": _ordered,
    "it works in single precision": part_laws.check_single,
    "an empty batch contributes exactly 0": lambda part, case, seed: laws.check_contributes_nothing(
        host(part), batch_for(part, EMPTY)
    ),
    "it keeps double precision": _double,
    "its gradient is finite, at later steps too": lambda part, case, seed: _finite(host(part), case, seed),
    "gradient flows to logp alone": _hosted(laws.check_gradient_flows_only_to_logp),
    "a trust region never masks on-policy data: g(1) = 1": _keeps_on_policy,
}

ESTIMATOR_LAWS: dict[str, Law] = {
    "it is a value": _is_a_value,
    "an empty batch contributes exactly 0": lambda it, case, seed: laws.check_contributes_nothing(
        it, batch_for(it, EMPTY)
    ),
    "its gradient is finite, at later steps too": _finite,
    "gradient flows to what its terms push on alone": _by_batch(laws.check_gradient_flows_only_to_logp),
    "the order of trajectories does not matter": lambda it, case, seed: laws.check_permutation(
        it, batch_for(it, case), seed=seed
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
    if issubclass(kind, ESTIMATING):
        wanted |= {"an indented formula": r"^    \S", "'Shapes:'": r"\bShapes:", "'Source:'": r"\bSource:"}
    missing = [what for what, pattern in wanted.items() if re.search(pattern, text, flags=re.MULTILINE) is None]
    return Finding(law, f"it lacks {', '.join(missing)}" if missing else None)


def _findings(
    chosen: Mapping[str, Law], drawn: st.SearchStrategy[Any], examples: int, corners: Sequence[Any] = ()
) -> Iterator[Finding]:
    for name, law in chosen.items():
        finding = _finding(name, law, drawn, examples)
        yield _in_corners(name, law, corners, examples) if finding.failure is None else finding


def _finding(name: str, law: Law, drawn: st.SearchStrategy[Any], examples: int) -> Finding:
    """The smallest example on which a law breaks, as Hypothesis shrinks it: the last one that it tries."""
    smallest: list[Any] = []
    idle: set[str] = set()

    def ask(subject: Any, case: Case, seed: int) -> None:
        try:
            law(subject, case, seed)
        except Exception as error:
            smallest[:] = [subject, case, seed, error]
            raise
        # An example in which the part changes nothing shows nothing, so another is drawn in its place. Hypothesis asks
        # for the same example again, which must then be the same.
        example = repr((subject, case, seed))
        if example in idle or (len(idle) < examples // 2 and _shows_little(subject, case, seed)):
            idle.add(example)
            assume(False)

    try:
        _asked(ask, drawn, examples)()
    except Unsatisfiable:
        return Finding(name) if idle else Finding(name, "no valid parameters could be drawn; give them: name=value")
    except Exception as error:
        subject, case, _, first = smallest or ("", EMPTY, 0, error)
        # What breaks a law at one call and not at the next is told as the part's, and not as Hypothesis's own.
        return _failed(name, first if isinstance(error, Flaky) else error, subject, case)
    return Finding(name)


def _shows_little(subject: Any, case: Case, seed: int) -> bool:
    """Whether a part gives everything the same number on an example."""
    if not isinstance(subject, ESTIMATING):
        return False
    try:
        return not scenes.acts(subject, scenes.scene(subject, case, seed))
    except Exception:  # a part is anybody's code, and a law of its own looks at what it raises
        return False


def _in_corners(name: str, law: Law, corners: Sequence[Any], examples: int) -> Finding:
    """Parameters and batches that draws meet too seldom: corners of the one with corners of the other."""
    pairs = sorted(
        ((i, j) for i in range(len(corners)) for j in range(len(CORNERS))), key=lambda pair: (sum(pair), pair)
    )
    for number, (i, j) in enumerate(pairs[:examples]):
        subject, case = corners[i], CORNERS[j]

        if _breach(law, subject, case, number) is not None:
            case = _shrunk(case, partial(_breach_of, law, subject, number))
            error = _breach(law, subject, case, number)
            return Finding(name) if error is None else _failed(name, error, subject, case)
    return Finding(name)


def _breach_of(law: Law, subject: Any, seed: int, case: Case) -> Exception | None:
    return _breach(law, subject, case, seed)


def _breach(law: Law, subject: Any, case: Case, seed: int) -> Exception | None:
    """What a law raises on an example, or None."""
    try:
        law(subject, case, seed)
    except Exception as error:  # a part is anybody's code
        return error
    return None


def _shrunk(case: Case, breach: Callable[[Case], Exception | None]) -> Case:
    """A smaller case that breaks the law as well: fewer prompts, shorter responses."""
    smaller: Iterator[Case] = iter(_smaller(case))
    for _ in range(40):
        each = next(smaller, None)
        if each is None:
            break
        if breach(each) is not None:
            case = each
            smaller = iter(_smaller(case))
    return case


def _smaller(case: Case) -> Iterator[Case]:
    for i in range(len(case.prompts)):
        yield replace(case, prompts=case.prompts[:i] + case.prompts[i + 1 :])
    if case.longest > max(case.shortest, 1):
        yield replace(case, longest=max(case.longest // 2, case.shortest, 1))
    if case.interleaved:
        yield replace(case, interleaved=False)


def _failed(name: str, error: Exception, subject: Any, case: Case) -> Finding:
    reason = str(error).partition("\n\n")[0] or "it does not hold"
    said = reason if isinstance(error, AssertionError | PartError) else _raised(error, reason, subject)
    return Finding(name, said, f"{subject!r}\n    and {case!r}")


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
