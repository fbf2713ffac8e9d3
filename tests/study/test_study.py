"""The study: its world is listed whole, its gradients are exact, and it tells biased estimators from unbiased ones."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from typer.testing import CliRunner

import upge
from upge import Estimator
from upge.cli.main import app
from upge.errors import InputError
from upge.study import exact
from upge.study.exact import (
    ExactProblem,
    Kind,
    Setting,
    World,
    add,
    draws,
    exact_problem,
    listed,
    outcomes,
    sampled,
    start,
)
from upge.study.study import BLOCKS, Case, Finding, Gradients, gradients, measure, remarks, study

TWO = World(success=(0.25,), vocabulary=2, length=1)
"""Two answers of one token, the second of which is right: everything can be worked out by hand."""
SMALL = World(success=(0.2, 0.6), vocabulary=2, length=2)
KINDS: list[Kind] = ["table", "transformer"]


def estimator(name: str, *overrides: str, length: int = 3) -> Estimator:
    return upge.load(name, [f"rollout.max_tokens={length}", *overrides]).estimator


def found(name: str, place: ExactProblem, n: int, *, prompts: int = 1, mu: float = 0.0, stale: bool = False) -> Finding:
    return measure(gradients(estimator(name), place, Setting(prompts, n), stale=stale, count=2000), place.gradient(mu))


# The world.


@given(vocabulary=st.integers(2, 5), length=st.integers(1, 4))
@example(vocabulary=2, length=1)
def test_every_sequence_is_listed_once(vocabulary: int, length: int) -> None:
    sequences = World(vocabulary=vocabulary, length=length).sequences
    ended = sum((vocabulary - 1) ** k for k in range(length))
    assert len(sequences) == len(set(sequences)) == ended + (vocabulary - 1) ** length
    assert all(0 not in sequence[:-1] and (sequence[-1] == 0 or len(sequence) == length) for sequence in sequences)


@pytest.mark.parametrize("kind", KINDS)
def test_probabilities_add_up_and_success_is_as_asked(kind: Kind) -> None:
    world = World(success=(0.02, 0.5, 0.97))
    listing = listed(start(kind, world), world)
    torch.testing.assert_close(listing.probability.sum(1), torch.ones(3, dtype=torch.float64))
    right = (listing.probability * world.reward).sum(1)
    torch.testing.assert_close(right, torch.tensor(world.success, dtype=torch.float64), atol=1e-8, rtol=0)
    torch.testing.assert_close(world.demonstrator.sum(1), torch.ones(3, dtype=torch.float64))
    assert bool((world.demonstrator * (1 - world.reward) == 0).all())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"success": ()}, "success rates"),
        ({"success": (1.0,)}, "success rates"),
        ({"vocabulary": 1}, "vocabulary"),
        ({"vocabulary": 20, "length": 4}, "4096"),
    ],
)
def test_worlds_that_cannot_be(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        World(**arguments)  # type: ignore[arg-type]


# The exact gradient, and those of batches.


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mu", [0.0, 0.7])
def test_the_exact_gradient_is_the_objectives_slope(kind: Kind, mu: float) -> None:
    place, step = exact_problem(SMALL, kind), 1e-5

    def objective(move: Tensor) -> float:
        policy = start(kind, SMALL)
        add(list(policy.parameters()), move)
        listing = listed(policy, SMALL).detached()
        reward = (listing.probability * SMALL.reward).sum(1)
        shown = SMALL.demonstrator
        divergence = (torch.special.xlogy(shown, shown) - shown * listing.logp.sum(-1)).sum(1)
        return float((reward - mu * divergence).mean())

    random = torch.Generator().manual_seed(3)
    for _ in range(3):
        way = torch.randn(len(place.gradient(mu)), generator=random, dtype=torch.float64)
        slope = (objective(step * way) - objective(-step * way)) / (2 * step)
        assert slope == pytest.approx(float(place.gradient(mu) @ way), rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["hpt_upt", "luffy", "srft", "gspo", "grpo_kl"])
@pytest.mark.parametrize("stale", [0, 3])
def test_a_batchs_gradient_is_that_of_the_estimators_loss(name: str, stale: int) -> None:
    """The weights times listed score vectors are what autograd makes of the loss, entropy's share included."""
    place, setting, made = exact_problem(SMALL, stale=stale), Setting(3, 4), estimator(name)
    policy = start("table", SMALL)
    for _ in range(stale):
        parameters = list(policy.parameters())
        expected = (listed(policy, SMALL).probability * SMALL.reward).sum(1).mean()
        add(parameters, exact.flat(torch.autograd.grad(expected, parameters), parameters))
    listing = listed(policy, SMALL)
    count = BLOCKS
    ours = gradients(made, place, setting, stale=stale > 0, count=count, seed=5).g
    for row, draw in zip(ours, draws(place, setting, count, 5), strict=True):
        it = sampled(place, setting, made, draw, stale=stale > 0)
        batch = replace(it.batch, logp=listing.logp.flatten()[it.place], entropy=listing.entropy.flatten()[it.place])
        parameters = list(policy.parameters())
        loss = made.loss(batch)
        slopes = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        torch.testing.assert_close(row, -exact.flat(slopes, parameters), rtol=1e-9, atol=1e-12)


def test_the_value_is_what_may_still_come() -> None:
    place = exact_problem(SMALL)
    before_any = (place.old.probability * SMALL.reward).sum(1)
    torch.testing.assert_close(place.value[:, :, 0], before_any[:, None].expand(-1, len(SMALL.sequences)))


# All batches, or draws of them.


@pytest.mark.parametrize(("world", "setting"), [(TWO, Setting(1, 2)), (SMALL, Setting(1, 4)), (SMALL, Setting(2, 2))])
def test_the_outcomes_are_all_there_are(world: World, setting: Setting) -> None:
    listed_all = outcomes(exact_problem(world), setting)
    assert listed_all is not None
    assert math.fsum(chance for chance, _ in listed_all) == pytest.approx(1, abs=1e-12)


def test_too_many_outcomes_are_drawn_instead() -> None:
    place = exact_problem(World())
    assert outcomes(place, Setting(4, 8)) is None
    assert gradients(estimator("rloo"), place, Setting(4, 8), count=41).g.shape[0] == 60


HEAVY_DRAWS = [pytest.param(name, 2000, marks=pytest.mark.heavy) for name in ("rloo", "grpo", "hpt")]


@pytest.mark.parametrize(("name", "count"), [("hpt", 300), *HEAVY_DRAWS])
def test_draws_agree_with_all_there_is(name: str, count: int) -> None:
    """The intervals of the draws hold the exact numbers; the seed is fixed, so this doesn't fail by chance."""
    place, setting = exact_problem(SMALL), Setting(1, 3)
    exact = measure(gradients(estimator(name), place, setting), place.gradient(0.1))
    rows = torch.stack([_gradient(name, place, setting, draw) for draw in draws(place, setting, count, 11)])
    drawn = measure(Gradients(rows), place.gradient(0.1))
    assert exact.exact
    assert not drawn.exact
    for each in ("scale", "bias", "variance", "error", "cosine"):
        interval = getattr(drawn, each)
        assert interval.low <= getattr(exact, each).value <= interval.high, each


def _gradient(name: str, place: ExactProblem, setting: Setting, draw: object) -> Tensor:
    made = estimator(name)
    it = sampled(place, setting, made, draw, stale=False)  # type: ignore[arg-type]
    weighed = made.weigh(it.batch, made.count(it.batch, made.credit(it.batch)))
    total = sum(term.weight @ place.score[it.place] for term in weighed.terms.values())
    assert isinstance(total, Tensor)
    return total


# What is known of estimators.


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
@given(success=st.tuples(st.floats(0.05, 0.95), st.floats(0.05, 0.95)), n=st.integers(2, 4), seed=st.integers(0, 5))
@example(success=(0.05, 0.95), n=2, seed=0)
@settings(max_examples=8)
def test_unbiased_estimators_have_no_bias(name: str, success: tuple[float, float], n: int, seed: int) -> None:
    place = exact_problem(World(success, vocabulary=2, length=2, seed=seed))
    it = found(name, place, n)
    assert it.exact
    assert it.bias.value < 1e-7
    assert it.scale.value == pytest.approx(2 if name == "reinforce" else 1)


def test_dividing_by_the_deviation_turns_the_gradient() -> None:
    """GRPO weighs prompts by 1/std, so prompts of unequal success pull it away; without it there is no bias."""
    place = exact_problem(SMALL)
    assert found("grpo", place, 4).bias.value > 0.02
    assert found("drgrpo", place, 4).bias.value < 1e-7


@pytest.mark.parametrize("length", [1, 2])
def test_what_the_clip_and_a_tokens_own_ratio_cost_once_the_policy_has_moved(length: int) -> None:
    """Without a clip importance weights are right for single tokens; a ratio per token forgets the tokens around it."""
    place = exact_problem(World(success=(0.2, 0.6), vocabulary=3, length=length), stale=30)
    clipped, unclipped = (
        measure(gradients(made, place, Setting(1, 3), stale=True), place.gradient(0)).bias.value
        for made in (estimator("drgrpo"), estimator("drgrpo", "estimator.terms.rl.mask=none"))
    )
    assert clipped > unclipped + 0.05
    assert (unclipped < 1e-7) == (length == 1)


def test_imitating_with_denominator_one_prefers_what_is_likely_already() -> None:
    """SFT's expectation is −∇KL(π_β‖π) to scale with `sequence_sum`; DFT's weight π_θ turns it."""
    place = exact_problem(SMALL)
    imitation = place.imitation_gradient
    weighed = {}
    for name in ("sft", "dft"):
        made = estimator(name, "estimator.terms.sft.reduction=sequence_sum")
        weighed[name] = measure(gradients(made, place, Setting(1, 2)), imitation)
    assert weighed["sft"].bias.value < 1e-7
    assert weighed["dft"].bias.value > 0.05


def test_two_tokens_by_hand() -> None:
    """RLOO on two answers: p = 1/4, n = 2, ∇log π(right) = (1 − p)·d, with d = (−1, 1) along the logits.

    Of two samples one is right with chance 2·p·(1 − p) = 3/8, and then Â = ±1, so g = ½·(¾·d + ¼·d) = d/2; else g = 0.
    E g = 3/16·d = p·(1 − p)·d = ∇J. Variance: (3/8·¼ − 9/256)/(9/256) = 5/3. Cosine: 3/8.
    """
    place = exact_problem(TWO)
    torch.testing.assert_close(place.reward_gradient, torch.tensor([-3 / 16, 3 / 16], dtype=torch.float64))
    it = found("rloo", place, 2)
    assert it.exact
    numbers = (it.scale.value, it.bias.value, it.variance.value, it.error.value, it.cosine.value)
    assert numbers == pytest.approx((1, 0, 5 / 3, 5 / 3, 3 / 8), abs=1e-7)


def test_without_a_gradient_there_is_no_scale() -> None:
    it = measure(
        Gradients(torch.zeros(2, 3, dtype=torch.float64), torch.tensor([0.5, 0.5]).double()), torch.ones(3).double()
    )
    assert (it.scale.value, it.bias.value, it.cosine.value) == (0, math.inf, 0)


# The study and its command.


def test_a_study_varies_one_number_at_a_time() -> None:
    rows = list(study({"rloo": estimator("rloo")}, Case(SMALL, Setting(1, 2)), [0.0], {"n": (2, 3), "success": (0.5,)}))
    assert [(row.varied, row.value) for row in rows] == [(None, None), ("n", 2), ("n", 3), ("success", 0.5)]
    assert rows[0].finding == rows[1].finding
    assert rows[0].finding != rows[2].finding


def test_a_rate_that_leaves_no_policy_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("no parameters found with these success rates")

    monkeypatch.setattr(exact, "_tune", refuse)
    with pytest.raises(InputError, match="no parameters"):
        list(study({}, Case(World(success=(0.123,))), [0.0], {}))


def test_the_command_prints_what_can_be_worked_out_by_hand() -> None:
    world = ["--success", "0.25", "--vocabulary", "2", "--length", "1"]
    answer = CliRunner().invoke(app, ["study", "rloo", *world, "--prompts", "1", "--n", "2", "--no-sweep", "--json"])
    assert answer.exit_code == 0, answer.output
    rloo = json.loads(answer.stdout)[0]
    assert rloo["exact"]
    assert rloo["variance"]["value"] == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["rloo", "--success", "1.5"], "success rates"), (["rloo", "rloo"], "the same name"), (["rlo"], "rloo")],
)
def test_wrong_arguments_are_told(arguments: list[str], said: str) -> None:
    answer = CliRunner().invoke(app, ["study", *arguments])
    assert answer.exit_code != 0
    assert said in str(answer.exception) + answer.output


class _Warming(upge.Advantage):
    """The reward, from the second rollout batch on."""

    needs = frozenset({"reward"})

    def initial(self) -> dict[str, torch.Tensor]:
        return {"on": torch.tensor(0.0, dtype=torch.float64)}

    def advance(self, b: upge.View) -> dict[str, torch.Tensor]:
        return {"on": torch.ones_like(b.state["on"])}

    def __call__(self, b: upge.View) -> torch.Tensor:
        return b.to_tokens(b.reward) * b.state["on"].to(b.dtype)


def test_state_is_carried_over_the_rollout_batches_before_a_step() -> None:
    terms = {name: dict(term) for name, term in upge.load("reinforce").estimator.terms.items()}
    terms["rl"] |= {"advantage": _Warming()}
    estimators = {"warming": upge.Estimator.model_validate({"terms": terms})}
    rows = {step: next(study(estimators, Case(setting=Setting(step=step), count=40), [0.0], {})) for step in (0, 3)}
    assert rows[0].finding.scale.value == 0
    assert rows[3].finding.scale.value == pytest.approx(1, abs=0.5)


def test_parts_that_never_acted_are_named() -> None:
    estimators = {name: upge.load(name).estimator for name in ("grpo", "reinforce")}
    said = list(remarks(estimators, Case()))
    assert said == ["grpo: terms.rl.mask.0 made no difference on 20 of the batches in the first table"]
    assert list(remarks(estimators, Case(stale=16))) == []


def test_a_price_on_length_that_begins_beyond_the_study_leaves_the_table_whole() -> None:
    world = ["--success", "0.25", "--vocabulary", "2", "--length", "1", "--prompts", "1", "--n", "2"]
    answer = CliRunner().invoke(app, ["study", "dapo", "rloo", *world, "--no-sweep", "--json"])
    assert answer.exit_code == 0, answer.output
    assert {row["recipe"] for row in json.loads(answer.stdout)} == {"dapo", "rloo"}
    assert "dapo: keeps its own rollout.max_tokens, 96; with the study's --length, 1: soft_limit 76" in answer.stderr


BROKEN = """\
import upge


class Broken(upge.Mask):
    \"""Nothing.

    Formula: 1. Source: none.\"""

    def __call__(self, b):
        if b.ratio.shape[0] > 1:
            raise ValueError("never mind")
        return b.ratio.new_ones(())
"""


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A recipe with a part that raises."""
    (tmp_path / "part.py").write_text(BROKEN)
    path = tmp_path / "broken.yaml"
    path.write_text("extends: grpo.yaml\nestimator:\n  terms:\n    rl:\n      mask: part.py:Broken\n")
    return path


@pytest.mark.parametrize("as_json", [False, True])
def test_a_part_that_raises_ends_its_recipes_row_alone(broken: Path, as_json: bool) -> None:
    words = ["study", "rloo", str(broken), "drgrpo", "--mu", "0", "--prompts", "1", "--n", "2", "--no-sweep"]
    result = CliRunner().invoke(app, [*words, "--allow-code", *(["--json"] if as_json else [])])
    assert result.exit_code == 1, result.output
    assert f"broken: {broken}:5:13: Broken (estimator.terms.rl.mask.0) raised ValueError: never mind" in result.stderr
    if as_json:
        rows = json.loads(result.stdout)
        assert [row["recipe"] for row in rows] == ["rloo", "drgrpo", "broken"]
        assert "never mind" in rows[2]["fault"]
    else:
        assert re.search(r"broken +failed", result.stdout)
        assert re.search(r"0 +rloo +\S+", result.stdout)
        assert re.search(r"0 +drgrpo +\S+", result.stdout)


@pytest.mark.parametrize("first", [True, False])
def test_diff_places_the_error_of_a_part_in_its_recipe(broken: Path, first: bool) -> None:
    both = [str(broken), "grpo"] if first else ["grpo", str(broken)]
    result = CliRunner().invoke(app, ["diff", *both, "--allow-code"])
    assert str(result.exception).startswith(f"{broken}:5:13: Broken (estimator.terms.rl.mask.0) raised ValueError")
