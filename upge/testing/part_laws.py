"""What a factor owes, asked of its own numbers: each law says at which token it breaks, and by what.

A product of factors can hide what one of them does, so these look at the part alone, in the phases of an estimator.
"""

from __future__ import annotations

import random as python_random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy
import torch
from torch import Tensor

from upge.estimator.credit import seen_with
from upge.estimator.part_calls import initial_of
from upge.estimator.part_errors import PartError
from upge.estimator.view import Reduce, View
from upge.part import Advantage, Denominator, Part, Reduction, Stateful, Switch, carries_state
from upge.part_checks import ATTRIBUTES
from upge.testing.batches import RICH, Case
from upge.testing.comparison import Name, assert_close, names
from upge.testing.lockstep import lockstep
from upge.testing.scenes import CONTINUOUS, Scene, after, narrow, numbers, pieces, put, scene, viewer

Numbers = dict[str, Tensor]


@contextmanager
def during(how: str) -> Iterator[None]:
    """What a part raises is told with what was done to it."""
    try:
        yield
    except PartError as error:
        raise AssertionError(f"{how}: {error}") from error


def _assert_same(part: Part, seen: Scene, expected: Numbers, got: Numbers, how: str) -> None:
    """Equal up to rounding, on the tokens of the part's term, but for places where rounding decides."""
    own = _owned(part, seen)
    for name, wanted in expected.items():
        if not isinstance(part, Switch):
            got = got | {name: torch.where(own, got[name], wanted)}
        said = f"{how}, {name}" if name else how

        def others(name: str = name) -> Iterator[Tensor]:
            return (numbers(part, seen.wobbled(by))[name] for by in (1e-10, -1e-10))

        assert_close(wanted, got[name], names(part, seen.batch), said, others=others)


def _owned(part: Part, seen: Scene) -> Tensor:
    """(T,) bool: the tokens for which a part is asked; what it says of others is multiplied by 0."""
    only_active = isinstance(part, Reduction) and part.count == "active"
    return (seen.active if only_active else seen.rows)[seen.batch.trajectory]


def _assert_same_state(expected: Numbers, got: Numbers, how: str) -> None:
    for name, wanted in expected.items():
        if wanted.shape != got[name].shape:
            raise AssertionError(
                f"{how}: state['{name}']: expected the shape {tuple(wanted.shape)}, got {tuple(got[name].shape)}"
            )
        assert_close(wanted.flatten(), got[name].flatten(), _number_of(name), how)


def _number_of(state: str) -> Name:
    return lambda index: f"state['{state}'], number {index}"


# Order.


def check_order(part: Part, case: Case, seed: int) -> None:
    """Trajectories in another order, and prompts under other names, get the same numbers, and leave the same state."""
    seen = scene(part, case, seed)
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(seen.batch.size, generator=random)
    called = torch.randperm(3 * max(seen.batch.prompts, 1), generator=random)[seen.batch.prompt]
    moved, tokens = seen.permuted(order, called)
    how = "in another order of trajectories"
    with during(how):
        found = numbers(part, moved)
    expected = numbers(part, seen)
    if isinstance(part, Switch):
        was = torch.unique(called, return_inverse=True)[1]  # (N,) the new index of each trajectory's prompt
        back = {name: x.clone() for name, x in expected.items()}
        for name, x in found.items():
            back[name][seen.batch.prompt] = x[was]
    else:
        back = {name: torch.empty_like(x).index_copy_(0, tokens, x) for name, x in found.items()}
    _assert_same(part, seen, expected, back, how)
    if isinstance(part, Stateful):
        _assert_same_state(after(part, seen), after(part, moved), how)


# Ranks and micro-batches.


def check_ranks(part: Part, case: Case, seed: int) -> None:
    """Two or three ranks, now and then one without rows, give the numbers of one, and all leave its state."""
    seen, ranks = scene(part, case, seed), 2 + seed % 2
    random = torch.Generator().manual_seed(seed)
    idle = seed // 2 % 3 == 2  # the last rank gets nothing
    owner = torch.randint(0, ranks - idle, (max(seen.batch.prompts, 1),), generator=random)
    shares = [owner[seen.batch.prompt] == rank for rank in range(ranks)]
    how = f"by ranks: {ranks} of them, prompts on {owner[: seen.batch.prompts].tolist()}"

    def work(rank: int, reduce: Reduce) -> tuple[Numbers, Numbers]:
        own = seen.select(shares[rank])
        return numbers(part, own, reduce), after(part, own, reduce) if isinstance(part, Stateful) else {}

    expected = numbers(part, seen)
    got = {name: x.clone() for name, x in expected.items()}
    with during(how):
        results = lockstep(ranks, work)
    left = after(part, seen) if isinstance(part, Stateful) else {}
    for rank, (share, state) in enumerate(results):
        put(got, part, seen, shares[rank], share)
        _assert_same_state(left, state, f"{how}; rank {rank}")
    _assert_same(part, seen, expected, got, how)


def check_pieces(part: Part, case: Case, seed: int) -> None:
    """Micro-batches as fine as the part's scope allows give the numbers of the whole."""
    seen = scene(part, case, seed)
    if not narrow(part):
        return
    cut = list(pieces(part, seen, 2 + seed % 3, torch.Generator().manual_seed(seed)))
    how = f"by splitting: into {len(cut)} micro-batches, scope `{part.scope}`"
    expected = numbers(part, seen)
    got = {name: x.clone() for name, x in expected.items()}
    for rows in cut:
        with during(how):
            put(got, part, seen, rows, numbers(part, seen.select(rows)))
    _assert_same(part, seen, expected, got, how)


def check_dropped(part: Part, case: Case, seed: int) -> None:
    """Trajectories without coefficient or advantage have no say in the numbers of the others: they are dropped.

    Those of a prompt that a part sees together are dropped together, once none of them has any.
    """
    seen = scene(part, case, seed)
    if not narrow(part):  # a part that sees the whole step has seen it before anything is dropped
        return
    rows = seen.active.clone()
    if "advantage" in seen.known:
        pushed = torch.zeros_like(rows)
        pushed[seen.batch.trajectory[seen.known["advantage"] != 0]] = True
        rows &= pushed
    rows = seen_with(rows, seen.batch, part.scope)
    how = "by splitting: without the trajectories that have no coefficient or no advantage, which a run drops"
    expected = numbers(part, seen)
    got = {name: x.clone() for name, x in expected.items()}
    with during(how):
        put(got, part, seen, rows, numbers(part, seen.select(rows)))
    _assert_same(part, seen, expected, got, how)


def check_counted(part: Part, case: Case, seed: int) -> None:
    """A reduction counts its term's trajectories, with `count: active` those with a coefficient, and no others."""
    if not isinstance(part, Reduction):
        return
    seen = scene(part, case, seed)
    rows = seen.active if part.count == "active" else seen.rows
    how = f"by what it counts: without the trajectories that `count: {part.count}` leaves out"
    expected = numbers(part, seen)
    got = {name: x.clone() for name, x in expected.items()}
    with during(how):
        put(got, part, seen, rows, numbers(part, seen.select(rows)))
    _assert_same(part, seen, expected, got, how)


# The same again.


def check_pure(part: Part, case: Case, seed: int) -> None:
    """A part draws nothing, keeps nothing, changes nothing that isn't its own: the same batch, the same numbers."""
    seen = scene(part, case, seed)
    fields = {name: x for name in vars(seen.batch) if isinstance(x := getattr(seen.batch, name), Tensor)}
    inputs = fields | seen.known | {f"state['{name}']": x for name, x in seen.state.items()}
    before = {name: x.clone() for name, x in inputs.items()}
    with _nothing_drawn():
        first = numbers(part, seen)
        if isinstance(part, Stateful):
            after(part, seen)
    for name, x in before.items():
        if not torch.equal(inputs[name], x):
            raise AssertionError(f"it changes b.{name} in place")
    other = replace(seen.mapped(lambda name, x: x * 0.5), step=seen.step + 1)
    numbers(part, other)
    fresh = type(part).model_validate({f.alias or n: getattr(part, n) for n, f in type(part).model_fields.items()})
    with mock.patch("time.time", return_value=1e9):
        for again, how in ((part, "a second call gives other numbers"), (fresh, "an equal part gives other numbers")):
            found = numbers(again, seen)
            if first.keys() != found.keys():
                raise AssertionError("a second call answers for other terms")
            for name, x in first.items():
                assert_close(x, found[name], names(part, seen.batch), how, rtol=0, atol=0)


@contextmanager
def _nothing_drawn() -> Iterator[None]:
    """Raise AssertionError if a global generator, or torch's default type, is another one afterwards."""

    def state() -> dict[str, object]:
        legacy = numpy.random.get_state()
        return {
            "torch's": bytes(torch.get_rng_state().numpy().tobytes()),
            "Python's": python_random.getstate(),
            "numpy's": (legacy[1].tobytes(), legacy[2]),  # type: ignore[index]
        }

    before, default = state(), torch.get_default_dtype()
    yield
    for whose, generator in state().items():
        if generator != before[whose]:
            raise AssertionError(
                f"it draws from {whose} global generator: other numbers for another packing, rank or resumed run"
            )
    if torch.get_default_dtype() != default:
        torch.set_default_dtype(default)
        raise AssertionError("it changes torch's default type")


def check_state(part: Part, case: Case, seed: int) -> None:
    """The state is finite, and what is saved and restored goes on as if nothing had happened."""
    if not isinstance(part, Stateful) or not (carries_state(part) or initial_of(part, part.slot)):
        return
    seen = scene(part, case, seed)
    kept = after(part, seen)
    for name, x in kept.items():
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise AssertionError(f"its state['{name}'] is not finite after rollout batch {seen.step}")
    restored = {name: x.detach().cpu().contiguous().clone() for name, x in kept.items()}
    going, resumed = (replace(seen, state=state, step=seen.step + 1) for state in (kept, restored))
    expected, got = numbers(part, going), numbers(part, resumed)
    for name, x in expected.items():
        how = "with its state saved and restored"
        assert_close(x, got[name], names(part, seen.batch), how, rtol=0, atol=0)


# Precision.


def check_finite_numbers(part: Part, case: Case, seed: int) -> None:
    """No number of the part's term is infinite: 0 times it would be NaN. A log-prob may be −∞."""
    seen = scene(part, case, seed)
    for name, x in numbers(part, seen).items():
        infinite = x.isinf() if not isinstance(part, Denominator) else x == torch.inf
        infinite &= torch.ones_like(infinite) if isinstance(part, Switch) else _owned(part, seen)
        if bool(infinite.any()):
            place = names(part, seen.batch)(int(infinite.nonzero()[0]))
            said = f", as {name}" if name else ""
            raise AssertionError(f"{place}: expected a finite number, got {float(x[infinite][0])}{said}")


def check_single(part: Part, case: Case, seed: int) -> None:
    """On a float32 batch a part gives what it gives on the same numbers in float64, up to rounding."""
    seen = scene(part, case, seed)
    if seed % 3 == 1:  # scores far from 0, on which differences of large numbers show
        seen = seen.mapped(lambda name, x: x + 1024 if name == "reward" else x)
    if seed % 3 == 2:  # probabilities that are 0 in float32, and ratios of them that are infinite
        seen = seen.lowered(110.0, torch.Generator().manual_seed(seed))
    single = seen.mapped(lambda name, x: x.float() if x.is_floating_point() else x)
    double = single.mapped(lambda name, x: x.double() if x.is_floating_point() else x)
    single, double = (replace(s, state=seen.state) for s in (single, double))
    how = "in single precision"
    expected = numbers(part, double)
    with during(how):
        got = numbers(part, single)

    def nearby(by: float) -> Scene:
        # Equal numbers stay equal, so that a group of equal scores stays one.
        return double.mapped(lambda name, x: x * (1 + by * torch.sin(1e3 * x)) if x.is_floating_point() else x)

    moved = {name: torch.zeros_like(wanted) for name, wanted in expected.items()}
    for amounts in NEARBY:
        for by in amounts:
            other = numbers(part, nearby(by))
            moved = {name: torch.maximum(x, (other[name] - expected[name]).abs()) for name, x in moved.items()}
        close = {name: _close(wanted, got[name].double(), moved[name]) for name, wanted in expected.items()}
        if all(bool(here.all()) for here in close.values()):
            return
    for name, wanted in expected.items():
        found = torch.where(close[name], wanted, got[name].double())
        assert_close(wanted, found, names(part, seen.batch), how)


NEARBY = ((1e-6, -1e-6, 3e-7), (8e-7, -7e-7, 6e-7, -5e-7, 4e-7, -3e-7, 2e-7, -2e-7))
"""How far inputs are moved to learn what rounding does; more often where that leaves a difference, for a tie's sake."""


def _close(wanted: Tensor, got: Tensor, moved: Tensor) -> Tensor:
    """(K,) bool: whether a number in float32 is that of float64, but for what `moved` says that rounding does."""
    largest = min(1.0, float(wanted.abs().max()) if len(wanted) else 0.0)
    return (got - wanted).abs() <= 3 * moved + 1e-3 * wanted.abs() + 1e-4 * largest


def check_double(part: Part, case: Case, seed: int) -> None:
    """On a float64 batch nothing is rounded to float32: where numbers move with the inputs, they move by a little, too.

    A part that rounds on its way stands still when its inputs move by 1e-9 of themselves, though it moves by 1e-6.
    """
    seen = scene(part, case, seed)
    base, small, large = (numbers(part, _scaled(seen, 0.01 + by)) for by in (0.0, 1e-9, 1e-6))
    for name, x in base.items():
        _assert_fine(x, names(part, seen.batch))
        moves, stands = large[name] != x, (large[name] != x) & (small[name] == x)
        # All start a little off: at a ratio of 1 a square of its logarithm stands still, to first order.
        # What moves in steps on purpose moves at few places by so little; what is rounded to float32 nearly everywhere.
        if int(moves.sum()) >= max(8, len(x) // 4) and int(stands.sum()) > 0.75 * int(moves.sum()):
            index = int(stands.nonzero()[0])
            raise AssertionError(
                f"it rounds to float32 on the way, at {names(part, seen.batch)(index)}: "
                f"expected a number that moves with its inputs by 1e-9, got {float(x[index]):.17g} for both"
            )


COARSE = {torch.float16: torch.int16, torch.bfloat16: torch.int16, torch.float32: torch.int32}
"""Floating types that are coarser than a batch may be, with integers of their size."""


def _assert_fine(x: Tensor, name: Name) -> None:
    """Raise AssertionError where numbers use all digits of a coarser type, and none that only float64 has."""
    different = torch.unique(x[x.isfinite()])
    if len(different) < 32:
        return
    for dtype, bits in COARSE.items():
        rounded = different.to(dtype)
        # Small integers, and multiples of an eighth, fit too; but the last digit is hardly ever theirs.
        if bool((rounded.double() == different).all()) and float((rounded.view(bits) % 2 != 0).double().mean()) > 0.4:
            kind = str(dtype).removeprefix("torch.")
            raise AssertionError(
                f"it rounds to {kind}: {name(0)}: expected a number with the digits of float64, got {float(x[0]):.17g}"
            )


def _scaled(seen: Scene, by: float) -> Scene:
    """The continuous inputs, each moved by up to this share of itself."""

    def moved(name: str, x: Tensor) -> Tensor:
        return x * (1 + by * (1.5 + torch.sin(1e3 * x))) if name in (*CONTINUOUS, "ratio", "advantage") else x

    return seen.mapped(moved)


# What it reads.


class _Reading(View):
    """A view that notes which declared fields are read."""

    noted: set[str]

    def _field(self, name: str, declared: str | None = None, *, before_shaping: bool = False) -> Tensor:
        self.noted.add(declared or name)
        return super()._field(name, declared, before_shaping=before_shaping)

    def field(self, name: str) -> Tensor:
        self.noted.add(name)
        return super().field(name)


def check_reads(part: Part, case: Case, seed: int) -> None:
    """A part works on what it declares alone, and some method of it reads all of that, in some state, at some step."""
    noted: set[str] = set()
    for each in (RICH, case):
        for number in (seed, seed + 2, seed + 4, seed + 7):
            seen = scene(part, each, number)
            absent = dict.fromkeys(set(ATTRIBUTES) - part.reads() - {"reward"})
            bare = replace(seen, batch=replace(seen.batch, **absent))  # type: ignore[arg-type]
            view = viewer(bare).view(part, part.slot, {part.slot: seen.state}, kind=_Reading)
            assert isinstance(view, _Reading)
            view.noted = noted
            for method in _methods(part):
                method(view)
        if noted >= part.reads():
            return
    unread = sorted(part.reads() - noted)
    raise AssertionError(f"it declares that it reads {', '.join(unread)}, and no method of it does")


def _methods(part: Part) -> list[Callable[[View], object]]:
    methods: list[Callable[[View], object]] = [part.__call__]  # type: ignore[operator]
    methods += [part.advance] if isinstance(part, Stateful) else []
    return methods + ([part.returns] if isinstance(part, Advantage) else [])
