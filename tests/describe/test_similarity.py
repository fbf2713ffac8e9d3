"""No estimator is reported as equal to one that it isn't, and every true reduction is still found."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from support import reduction_table as reductions
from torch import Tensor

import upge
from upge.describe.similarity import Subject, alike, apart
from upge.describe.synthetic import tried_steps
from upge.part import Part

STEPS = tried_steps(63)
OTHERS = ("grpo", "gspo", "sft", "hpt", "cispo", "grpo_kl", "grpo_tis")


@cache
def shipped() -> dict[str, upge.Estimator]:
    return {name: upge.load(name).estimator for name in OTHERS}


def varied(recipe: str = "grpo", *, switch: Part | None = None, **changes: Any) -> upge.Estimator:
    """A shipped recipe's estimator with other parts in its term `rl`; `mask` stands behind the masks it has."""
    given = upge.load(recipe).estimator
    terms = {name: dict(term) for name, term in given.terms.items()}
    mask = [*given.terms["rl"].mask, changes.pop("mask")] if "mask" in changes else given.terms["rl"].mask
    terms["rl"] |= changes | {"mask": mask}
    return upge.Estimator.model_validate({"terms": terms, "switch": given.switch if switch is None else switch})


def said(estimator: upge.Estimator) -> list[str]:
    return [str(each) for each in alike(estimator, shipped(), steps=STEPS)]


# Parts that look like nothing until something happens.


class Controlled(upge.Advantage):
    """GRPO's advantage, times what a PI controller has made of the success rate."""

    needs = frozenset({"reward"})

    def initial(self) -> dict[str, Tensor]:
        return {"gain": torch.tensor(1.0, dtype=torch.float64)}

    def advance(self, b: upge.View) -> dict[str, Tensor]:
        rate = b.total((b.reward > 0).to(b.dtype)) / b.total(torch.ones_like(b.reward)).clamp(min=1)
        return {"gain": (b.state["gain"] + 0.1 * (0.5 - rate)).clamp(0.1, 10)}

    def __call__(self, b: upge.View) -> Tensor:
        return shipped()["grpo"].terms["rl"].advantage(b) * b.state["gain"].to(b.dtype)


class ControlledSwitch(upge.Switch):
    """Goes over to demonstrations once the smoothed success rate has fallen."""

    needs = frozenset({"reward"})

    def terms(self) -> tuple[str, ...]:
        return ("rl",)

    def initial(self) -> dict[str, Tensor]:
        return {"rate": torch.tensor(1.0, dtype=torch.float64)}

    def advance(self, b: upge.View) -> dict[str, Tensor]:
        rate = b.total((b.reward > 0).to(b.dtype)) / b.total(torch.ones_like(b.reward)).clamp(min=1)
        return {"rate": 0.7 * b.state["rate"] + 0.3 * rate}

    def __call__(self, b: upge.View) -> dict[str, Tensor]:
        ones = torch.ones_like(b.per_prompt(b.rollout))
        return {"rl": ones if bool(b.state["rate"] > 0.6) else ones * 0.5}


class SlowSwitch(ControlledSwitch):
    """Its threshold is further away than any few rollout batches lead."""

    def advance(self, b: upge.View) -> dict[str, Tensor]:
        return {"rate": b.state["rate"] - 1e-4}


class Confident(upge.Mask):
    """Drops rollouts of which the policy is nearly certain."""

    needs = frozenset({"logp"})
    scope = "trajectory"
    threshold: float = -0.001

    def __call__(self, b: upge.View) -> Tensor:
        mean = b.per_trajectory(b.logp) / b.length.clamp(min=1)
        return b.to_tokens(1.0 * (mean < self.threshold))


class Diffuse(upge.Mask):
    needs = frozenset({"entropy"})

    def __call__(self, b: upge.View) -> Tensor:
        return torch.where(b.entropy > 8.0, 0.5, 1.0)


class Far(upge.Mask):
    trust_region = True
    bound: float = 1000.0

    def __call__(self, b: upge.View) -> Tensor:
        return 1.0 * (b.ratio < self.bound)


class FarEngine(upge.Mask):
    needs = frozenset({"old_logp", "rollout_logp"})

    def __call__(self, b: upge.View) -> Tensor:
        return 1.0 * ((b.old_logp - b.rollout_logp).abs() < 9)


class Truncated(upge.Mask):
    needs = frozenset({"truncated"})

    def __call__(self, b: upge.View) -> Tensor:
        return b.to_tokens(1.0 - 0.5 * b.truncated)


class LargeGroups(upge.Mask):
    size: int = 48
    scope = "group"

    def __call__(self, b: upge.View) -> Tensor:
        return b.to_tokens(b.to_trajectories(torch.where(b.per_prompt(b.rollout) > self.size, 0.5, 1.0)))


class Rich(upge.Mask):
    needs = frozenset({"reward"})

    def __call__(self, b: upge.View) -> Tensor:
        return b.to_tokens(torch.where(b.reward.abs() > 20, 0.5, 1.0))


class Late(upge.Mask):
    first: int = 40

    def __call__(self, b: upge.View) -> Tensor:
        return torch.full((), 0.5 if b.step >= self.first else 1.0, dtype=b.dtype)


class Window(upge.Mask):
    def __call__(self, b: upge.View) -> Tensor:
        return torch.full((), 0.5 if 1000 <= b.step < 1010 else 1.0, dtype=b.dtype)


class OffPolicy(upge.Mask):
    needs = frozenset({"logp", "old_logp"})
    trust_region = True

    def __call__(self, b: upge.View) -> Tensor:
        return torch.where((b.logp - b.old_logp).abs() > 10, 0.5, 1.0)


@pytest.mark.parametrize("mask", [Confident(), Diffuse(), Far(), Truncated(), LargeGroups(), Rich()], ids=repr)
def test_a_mask_that_acts_only_in_a_rare_case_is_not_passed_over(mask: upge.Mask) -> None:
    ours = varied(mask=mask)
    unconditional = [each for each in said(ours) if "where" not in each and "step" not in each]
    assert unconditional == []
    assert Subject(ours, STEPS).silent == ()


def test_conditions_that_silence_a_mask_are_said() -> None:
    assert "grpo, where π_old is π_θ (on-policy)" in said(varied(mask=OffPolicy()))
    engine = said(varied(mask=FarEngine()))
    assert "grpo, where the engine's log-probs are the trainer's" in engine
    assert not any(each.startswith("grpo") and "engine" not in each for each in engine)


def test_a_token_on_which_a_mask_acts_is_not_lost_where_trajectories_are_one_token() -> None:
    assert not any("on-policy" not in each for each in said(varied(mask=OffPolicy())))


def test_a_controllers_state_is_carried_before_estimators_are_called_alike() -> None:
    assert said(varied(advantage=Controlled())) == []
    assert all("every rollout is rewarded" in each for each in said(varied(switch=ControlledSwitch())))  # it stays at 1
    assert Subject(varied(advantage=Controlled()), STEPS).silent == ()


def test_nothing_is_said_of_what_never_acted() -> None:
    never = varied(mask=Far(bound=1e8))
    assert Subject(never, STEPS).silent == ("terms.rl.mask.1",)
    assert said(never) == []
    assert alike(shipped()["grpo"], {"never": never}) == []
    for bound in (1e9, 1e20):  # beyond what any batch has, and below the largest score
        assert Subject(varied(mask=Far(bound=bound)), STEPS).silent == ("terms.rl.mask.1",)
    assert "switch.0" in " ".join(Subject(varied(switch=SlowSwitch()), STEPS).silent)
    assert said(varied(switch=SlowSwitch())) == []
    assert Subject(varied(mask=LargeGroups(size=500)), STEPS).silent == ("terms.rl.mask.1",)
    assert Subject(varied(mask=Window()), STEPS).silent == ("terms.rl.mask.1",)


def test_a_part_that_cannot_act_is_no_reason_to_say_nothing() -> None:
    grpo = upge.load("grpo", ["estimator.terms.rl.mask=[{use: clip, low: 0.2, high: 0.2}, none]"]).estimator
    always = upge.load("grpo", ["estimator.switch={use: always, weights: {rl: 0.5}}"]).estimator
    assert Subject(grpo, STEPS).silent == ()
    assert "grpo" in said(grpo)
    assert "0.5 times grpo" in said(always)


def test_what_starts_late_is_said_to_move_with_the_step() -> None:
    moving = upge.load("grpo", ["estimator.terms.rl.weight={start: 1.0, end: 0.5, steps: 10}"]).estimator
    for estimator in (varied(mask=Late()), moving):
        assert said(estimator)[0] == "0.5 to 1 times grpo, a factor that moves with the step"


def test_a_gate_on_confidence_is_no_gate_on_success() -> None:
    class Gate(upge.Switch):
        needs = frozenset({"entropy"})

        def terms(self) -> tuple[str, ...]:
            return ("rl", "sft")

        def __call__(self, b: upge.View) -> dict[str, Tensor]:
            mean = b.per_trajectory(b.entropy) / b.length.clamp(min=1)
            size = b.per_prompt(torch.ones_like(mean)).clamp(min=1)
            sure = 1.0 * (b.per_prompt(mean) / size < 0.05)
            return {"rl": sure, "sft": 1 - sure}

    assert said(varied("hpt", switch=Gate())) == []


def test_distances_are_taken_where_they_are_greatest() -> None:
    grpo = shipped()["grpo"]
    far = varied(mask=Far())
    assert [each.cosine for each in apart(far, grpo)][:2] == [pytest.approx(1.0)] * 2
    assert apart(far, grpo)[2].cosine < 0.999 or apart(far, grpo)[2].norms[0] != apart(far, grpo)[2].norms[1]
    controlled = apart(varied(advantage=Controlled()), grpo, steps=STEPS)[2]
    assert "state carried" in controlled.batch
    assert controlled.norms[0] != pytest.approx(controlled.norms[1])


# True reductions.

WORDS = {
    "always": None,
    "on-policy: π_old = π_θ": "π_old is π_θ (on-policy)",
    "every trajectory is one token": "every trajectory is one token",
    "every prompt is above the gate": "every rollout is rewarded",
    "no prompt is above the gate": "no rollout is rewarded",
    "π_θ = π_0, as at the first step": "π_θ is the reference",
    "the engine's log-probs are the trainer's": "the engine's log-probs are the trainer's",
    "V ≡ 0": "V ≡ 0",
    "before its step 32": "up to step 31",
    "from its step 32 on": "from step 32 on",
}
LINES = [line for line in reductions.REDUCTIONS if line.when.words in WORDS]


def test_most_reductions_can_be_found_by_their_conditions() -> None:
    assert len(LINES) >= 17


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{line.this} is {line.that}")
def test_true_reductions_are_found(line: reductions.Line) -> None:
    found = alike(line.this.estimator, {"that": line.that.estimator}, steps=tried_steps(63, (32,)))
    words = WORDS[line.when.words]
    assert [str(each) for each in found if words is None or words in str(each)]
