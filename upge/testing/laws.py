"""The laws as check functions, for any part and any estimator.

Each takes the thing to check and a batch, and raises AssertionError where the law is broken. Property tests call them
on drawn batches, mutants on a fixed set, `upge.testing.conformance` for one part at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from upge.estimator.batch import FIELD_KINDS, Batch
from upge.estimator.credit import Credit
from upge.estimator.estimator import Estimator
from upge.estimator.view import Reduce, View
from upge.part import Advantage, Denominator, Factor, Mask, Part, Selection, State, Stateful, Switch, Weight
from upge.testing.batches import fresh, permuted
from upge.testing.comparison import assert_close, names
from upge.testing.lockstep import lockstep as lockstep
from upge.testing.padded import Padded

Gradient = tuple[Tensor, Tensor]
"""With respect to logp and to entropy, (T,) each."""


def gradient_of(loss: Tensor, batch: Batch) -> Gradient:
    """The gradient with respect to the batch's leaves; 0 where the loss doesn't depend on one."""
    assert batch.logp is not None
    assert batch.entropy is not None
    logp, entropy = torch.autograd.grad(loss, [batch.logp, batch.entropy], allow_unused=True)
    return _or_zero(logp, batch.logp), _or_zero(entropy, batch.entropy)


def _or_zero(gradient: Tensor | None, of: Tensor) -> Tensor:
    return torch.zeros_like(of) if gradient is None else gradient


def gradient(estimator: Estimator, batch: Batch, step: int = 0, state: State | None = None) -> Gradient:
    """The gradient of the estimator's loss on a batch, in the state that earlier ones have left."""
    leaf = fresh(batch)
    if state is None:
        return gradient_of(estimator.loss(leaf, step), leaf)
    credit = estimator.count(leaf, estimator.credit(leaf, step, state=state))
    return gradient_of(estimator.weigh(leaf, credit).loss, leaf)


def state_after(estimator: Estimator, batch: Batch, batches: int) -> State:
    """The state that so many rollout batches like this one leave."""
    state = estimator.initial()
    for step in range(batches):
        state = estimator.credit(batch, step, state=state).state
    return state


def assert_same(actual: Gradient, wanted: Gradient, batch: Batch | None = None, how: str = "the gradient") -> None:
    """Equal up to rounding in float64, and finite; AssertionError says at which token of `batch`, and by what."""
    for of, ours, theirs in zip(("", ", of the entropy"), actual, wanted, strict=True):

        def name(index: int) -> str:
            return f"token {index}" if batch is None else batch.token(index)

        unsteady = ~torch.isfinite(ours)
        if bool(unsteady.any()):
            raise AssertionError(f"{how}{of}: {name(int(unsteady.nonzero()[0]))}: the gradient is not finite")
        assert_close(theirs, ours, name, f"{how}{of}")


# 1. Published gradient.


def reaches_a_kink(ratio: Callable[[Padded], Tensor], kinks: Iterable[float], batch: Batch) -> bool:
    """Whether a ratio, through exp(log), lies within 1e-9 of a bound other than 1, where rounding decides the side."""
    found = ratio(Padded.of(fresh(batch)))
    return any(bool(((found - kink).abs() < 1e-9).any()) for kink in kinks if kink != 1.0)


def check_gradient(
    estimator: Estimator, loss: Callable[[Padded], Tensor], batch: Batch, step: int = 0, state: State | None = None
) -> None:
    """The estimator's gradient is that of a textbook's `loss` of the padded batch, under autograd.

    Args:
        step: the rollout batch's index. state: what `credit` of the one before left; the initial state by default.
    """
    leaf = fresh(batch)
    textbook = gradient_of(loss(Padded.of(leaf)), leaf)
    assert_same(gradient(estimator, batch, step, state), textbook, batch, "the gradient, held against the textbook's")


# 2. Splitting.


def check_splitting(estimator: Estimator, batch: Batch, *, ranks: int, pieces: int, seed: int, step: int = 0) -> None:
    """Ranks and micro-batches, however cut and in any order, sum to the gradient of the whole; so at later steps."""
    state = state_after(estimator, batch, step)
    random = torch.Generator().manual_seed(seed)
    whole = fresh(batch)
    rank_of = torch.randint(0, ranks, (max(batch.prompts, 1),), generator=random)[batch.prompt]
    shares = [whole.select(rank_of == rank) for rank in range(ranks)]

    def credited(rank: int, reduce: Reduce) -> Credit:
        credit = estimator.credit(shares[rank], step, state=state, reduce=reduce)
        return estimator.count(shares[rank], credit, reduce=reduce)

    loss = torch.zeros((), dtype=whole.dtype) + 0 * whole.trajectory.sum()
    for share, credit in zip(shares, lockstep(ranks, credited), strict=True):
        piece_of = _pieces(estimator, share, pieces, random)
        for piece in torch.randperm(pieces, generator=random).tolist():
            rows = piece_of == piece
            loss = loss + estimator.weigh(share.select(rows), credit.select(share, rows)).loss
        _assert_same_state(credit, estimator.credit(batch, step, state=state))
    how = f"by ranks or splitting: the gradient, on {ranks} ranks, each in {pieces} micro-batches"
    assert_same(gradient_of(loss, whole), gradient(estimator, batch, step, state), batch, how)


def check_optimizer_steps(estimator: Estimator, batch: Batch, *, seed: int) -> None:
    """Two optimizer steps over one rollout batch count by themselves: each is the loss of its own prompts."""
    if any(part.scope == "step" for part in estimator.parts().values()):
        return
    random = torch.Generator().manual_seed(seed)
    first = (torch.rand(max(batch.prompts, 1), generator=random) < 0.5)[batch.prompt]
    whole = estimator.credit(batch)
    for rows in (first, ~first):
        leaf = fresh(batch.select(rows))
        credit = estimator.count(leaf, whole.select(batch, rows))
        assert_same(gradient_of(estimator.weigh(leaf, credit).loss, leaf), gradient(estimator, batch.select(rows)))


def check_dropping(estimator: Estimator, batch: Batch) -> None:
    """Trajectories that aren't `alive` have gradient 0, and dropping them changes no other's."""
    whole = fresh(batch)
    credit = estimator.count(whole, estimator.credit(whole))
    rows = estimator.alive(whole, credit)
    kept = estimator.weigh(whole.select(rows), credit.select(whole, rows)).loss
    how = "by splitting: the gradient, without the trajectories that a run drops"
    assert_same(gradient_of(kept, whole), gradient(estimator, batch), batch, how)


def check_permutation(estimator: Estimator, batch: Batch, *, seed: int) -> None:
    """The order of trajectories within a batch permutes the gradient and nothing else."""
    order = torch.randperm(batch.size, generator=torch.Generator().manual_seed(seed))
    moved, tokens = permuted(batch, order)
    logp, entropy = gradient(estimator, batch)
    how = "by order: the gradient, with the trajectories in another order"
    assert_same(gradient(estimator, moved), (logp[tokens], entropy[tokens]), moved, how)


def _pieces(estimator: Estimator, batch: Batch, pieces: int, random: torch.Generator) -> Tensor:
    """(N,) the micro-batch of each trajectory, as fine as the parts' scopes allow."""
    if estimator.scope == "group":
        return torch.randint(0, pieces, (max(batch.prompts, 1),), generator=random)[batch.prompt]
    return torch.randint(0, pieces, (batch.size,), generator=random)


def _assert_same_state(ours: Credit, theirs: Credit) -> None:
    assert ours.state.keys() == theirs.state.keys()
    for place, tensors in theirs.state.items():
        assert ours.state[place].keys() == tensors.keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(ours.state[place][name], tensor)


# 3. Linearity.


def combined(parts: list[tuple[float, Gradient]]) -> Gradient:
    """Σ c·g."""
    (first, (logp, entropy)), *rest = parts
    logp, entropy = first * logp, first * entropy
    for factor, (more_logp, more_entropy) in rest:
        logp, entropy = logp + factor * more_logp, entropy + factor * more_entropy
    return logp, entropy


def check_sum_of_terms(terms: dict[str, Any], batch: Batch) -> None:
    """The gradient of a sum of terms is the sum of theirs."""
    alone = [(1.0, gradient(Estimator.model_validate({"terms": {n: t}}), batch)) for n, t in terms.items()]
    assert_same(gradient(Estimator.model_validate({"terms": terms}), batch), combined(alone))


def check_linear_in_coefficients(terms: dict[str, Any], weights: dict[str, float], batch: Batch) -> None:
    """With `count: all` the gradient is linear in s, so also in a term's weight."""
    alone = {n: gradient(Estimator.model_validate({"terms": {n: t}}), batch) for n, t in terms.items()}
    wanted = combined([(weights[name], alone[name]) for name in terms])
    switched = {"terms": terms, "switch": {"use": "always", "weights": weights}}
    assert_same(gradient(Estimator.model_validate(switched), batch), wanted)
    weighted = {name: {**term, "weight": weights[name]} for name, term in terms.items()}
    assert_same(gradient(Estimator.model_validate({"terms": weighted}), batch), wanted)


def check_pure(estimator: dict[str, Any], pure: str, batch: Batch) -> None:
    """A switch at (1, 0) or (0, 1) for all prompts gives the pure term."""
    alone = {"terms": {pure: estimator["terms"][pure]}}
    assert_same(gradient(Estimator.model_validate(estimator), batch), gradient(Estimator.model_validate(alone), batch))


def check_advantage_scales(estimator: Estimator, batch: Batch, field: str, factor: float) -> None:
    """Â → cÂ, c > 0, scales the gradient."""
    scaled = replace(batch, **{field: getattr(batch, field) * factor})
    assert_same(gradient(estimator, scaled), combined([(factor, gradient(estimator, batch))]))


# 4. On-policy.


def check_trust_region(mask: Part, batch: Batch, advantage: Tensor) -> None:
    """g(1) = 1: on-policy data is never masked, whatever its advantage."""
    assert isinstance(mask, Mask)
    assert batch.logp is not None
    ones = torch.ones_like(batch.logp)
    same = replace(batch, old_logp=None, rollout_logp=batch.logp)
    view = View(same, mask.reads(), known={"advantage": advantage, "ratio": ones, "mask": ones})
    found = mask(view).expand(ones.shape)
    assert_close(ones, found, batch.token, "it calls itself a trust region, and at ratio 1 it is not 1", rtol=0, atol=0)


# 5. Detachment.


def view_for(part: Part, batch: Batch) -> View:
    """The batch as this part sees it in the estimator: its declared fields, and what was computed before its slot."""
    state = part.initial() if isinstance(part, Stateful) else None
    return View(batch, part.reads(), known=known_to(part, batch), state=state)


def known_to(part: Part, batch: Batch) -> dict[str, Tensor]:
    """What was computed before a part's slot, in numbers that are always the same."""
    random = torch.Generator().manual_seed(7)
    numbers = torch.rand((3, *batch.trajectory.shape), generator=random, dtype=batch.dtype)
    known: dict[str, Tensor] = {}
    if isinstance(part, Advantage):
        known = {"reward": batch.reward, "shaping": 0 * numbers[0]}
    if isinstance(part, Denominator):
        known = {"advantage": numbers[0] - 0.5}
    if isinstance(part, Mask | Selection):
        known = {"advantage": numbers[0] - 0.5, "ratio": 0.5 + numbers[1], "mask": numbers[2].round()}
    return known


def check_detached(part: Part, batch: Batch) -> None:
    """A factor is numbers: (T,) or (), or (G,) per term of a switch, and carries no gradient.

    A selection is bool, (T,) or (N,), and a weight is one number, ().
    """
    wanted = {(), tuple(batch.trajectory.shape)}
    if isinstance(part, Switch):
        wanted = {(batch.prompts,)}
    if isinstance(part, Selection):
        wanted = {tuple(batch.trajectory.shape), (batch.size,)}
    if isinstance(part, Weight):
        wanted = {()}
    results = called(part, view_for(part, fresh(batch)))
    if isinstance(part, Switch):
        told = f"expected coefficients for {', '.join(part.terms())}, got some for {', '.join(results) or 'none'}"
        assert set(results) == set(part.terms()), told
    for result in results.values():
        assert isinstance(result, Tensor), f"expected a tensor, got {type(result).__name__}"
        shapes = " or ".join(map(str, sorted(wanted, reverse=True)))
        assert tuple(result.shape) in wanted, f"expected the shape {shapes}, got {tuple(result.shape)}"
        assert not result.requires_grad, "expected detached numbers, got some that carry gradient"
        if bool(result.isnan().any()):
            name = names(part, batch)(int(result.isnan().nonzero()[0])) if result.ndim else "for every token"
            raise AssertionError(f"{name}: expected a number, got nan")


def called(part: Part, view: View) -> dict[str, Tensor]:
    """A factor's numbers by name: "" for all but a switch, which has them per term."""
    if isinstance(part, Switch):
        return part(view)
    assert isinstance(part, Factor | Selection | Weight)
    return {"": part(view)}


def check_gradient_flows_only_to_logp(estimator: Estimator, batch: Batch) -> None:
    """Only logp, and entropy where a term pushes on it, carries gradient."""
    wet = fresh(batch)
    others = [f.name for f in fields(Batch) if f.name not in ("logp", "entropy")]
    tensors = {name: getattr(batch, name) for name in others}
    leaves = {n: x.clone().requires_grad_() for n, x in tensors.items() if _floats(x)}
    named: dict[str, Any] = {
        kind: {n: x.clone().requires_grad_() for n, x in getattr(batch, kind).items()} for kind in FIELD_KINDS
    }
    wet = replace(wet, **leaves, **named)
    estimator.loss(wet).backward()
    assert wet.logp is not None
    assert wet.entropy is not None
    every = [*leaves.values(), *(leaf for some in named.values() for leaf in some.values())]
    assert all(leaf.grad is None for leaf in every)
    pushed = {term.direction for term in estimator.terms.values()}
    assert (wet.entropy.grad is not None) == ("entropy" in pushed)
    assert (wet.logp.grad is not None) == ("likelihood" in pushed)


def _floats(x: object) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def check_double_precision(part: Part, batch: Batch) -> None:
    """Numbers that a part makes of its own parameters are as precise as the batch, whatever torch's default type is.

    `torch.where(here, 0.1, 0.2)` of two Python numbers, or `torch.tensor(0.1)`, has the default type: float32.
    """
    results = []
    for default in (torch.float32, torch.float64):
        with default_type(default):
            results.append(called(part, view_for(part, batch)))
    how = (
        "it rounds to float32: torch.where of two Python numbers, and torch.tensor of one, have torch's default type; "
        "take b.dtype, or multiply a tensor of the batch"
    )
    for name, result in results[0].items():
        numbers, precise = (x.double().reshape(-1) for x in (result, results[1][name]))
        place = names(part, batch) if result.ndim else lambda _: "the one number for all tokens"
        assert_close(precise, numbers, place, how, rtol=0.0, atol=0.0)


@contextmanager
def default_type(dtype: torch.dtype) -> Iterator[None]:
    """Torch's default type for a while."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


# 6. Empty streams.


def check_contributes_nothing(estimator: Estimator, batch: Batch) -> None:
    """The loss is exactly 0, can be differentiated, and its gradient is exactly 0: not NaN, not tiny."""
    leaf = fresh(batch)
    loss = estimator.loss(leaf)
    assert loss.item() == 0.0, f"the loss is {loss.item()}, not 0"
    for found in gradient_of(loss, leaf):
        assert bool((found == 0).all()), "the gradient is not exactly 0"


def check_finite(estimator: Estimator, batch: Batch, step: int = 0) -> None:
    """Neither the loss nor its gradient is NaN or infinite, at this step, in the state that those before it left."""
    leaf = fresh(batch)
    credit = estimator.count(leaf, estimator.credit(leaf, step, state=state_after(estimator, batch, step)))
    loss = estimator.weigh(leaf, credit).loss
    assert bool(torch.isfinite(loss)), f"the loss is {loss.item()}"
    assert all(bool(torch.isfinite(found).all()) for found in gradient_of(loss, leaf)), "the gradient is not finite"
