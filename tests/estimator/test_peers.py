"""Our recipes and TRL 1.16's GRPOTrainer have the same gradient of the same rollouts.

TRL's side is its own code from the rollouts on: padding, advantages, counts, ratios, shuffled micro-batches, the loss.
Ours is the shipped YAML. Gradients are compared and not losses: ours is a surrogate of another value, but for CISPO,
which is one itself. There are two ways: with log-probs given, all in float64; and in whole runs of `GRPOTrainer.train`
on a small model, in float32, which is what TRL's own projection onto the vocabulary computes in.

What has to be set for the two to mean the same:
- Advantages: TRL divides by the unbiased deviation plus 1e-4, so `epsilon: 1e-4` here. `scale_rewards="none"` there is
  `group_mean` here; TRL's `dr_grpo` alone doesn't bring it along.
- `loss_type` is a reduction: `grpo` sequence_mean, `dapo` and `cispo` token_mean, `luspo` sequence_sum, `dr_grpo`
  constant, whose length is `max_completion_length`. `importance_sampling_level="sequence"` is the denominator
  `sequence`, with any of them.
- Bounds: `epsilon` and `epsilon_high` are `low` and `high`; `delta` is dual_clip's `ratio_max`. With `cispo`,
  `epsilon_high` is no offset from 1 but the cap itself, `ratio_max`.
- KL: `beta` with `use_bias_correction_kl=False` is k3 over `current`; with TRL's default, True, it is k2 over `old`.
- The engine's correction: `truncated_importance` is TRL's modes `*_truncate`; its default is a mask over sequences.
- TRL has no dynamic sampling: the switch `informative` goes. The overlong penalty is a reward function of TRL's.

Two differences stay. TRL doesn't clamp log-ratios, and we do, at ±20, which no batch here reaches. And where one batch
of rollouts is cut into several optimizer steps, TRL's `dapo` and `cispo` divide each by the tokens of the average step,
and ours by its own: `test_several_optimizer_steps_…` says how far apart that puts them.

The group `peers` is optional: `pip install -e '.[test,peers]'`, then `pytest -m peers`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from support import tiny_models as models
from support.trl_peer import Peer, Script, save_model
from torch import Tensor, nn

import upge
from upge import Batch, Estimator
from upge.estimator.credit import Weighed
from upge.testing import Case, Prompt
from upge.testing.batches import fresh

pytestmark = [pytest.mark.peers, pytest.mark.filterwarnings("ignore:You are using 'rollout_func'")]

RECIPES = Path(__file__).parents[2] / "recipes"
BUDGET = 7
RL = "estimator.terms.rl"
NORM = f"{RL}.advantage={{use: group_norm, epsilon: 1e-4}}"
SEQUENCE = f"{RL}.denominator=sequence"


@dataclass(frozen=True)
class Pair:
    """A recipe with what is changed in it, and the GRPOConfig that says the same.

    `conventions` are the changes that a user has to make for TRL's numbers, `variation` makes another method.
    """

    recipe: str
    settings: dict[str, Any]
    conventions: tuple[str, ...] = (NORM,)
    variation: tuple[str, ...] = ()
    peer: dict[str, Any] = field(default_factory=dict)

    def estimator(self, *, without: str | None = None) -> Estimator:
        conventions = [override for override in self.conventions if override != without]
        overrides = [f"rollout.max_tokens={BUDGET}", *self.variation, *conventions]
        return upge.load(RECIPES / f"{self.recipe}.yaml", overrides).estimator


GRPO = {"loss_type": "grpo", "epsilon": 0.2}
DAPO = {"loss_type": "dapo", "epsilon": 0.2, "epsilon_high": 0.28}
DR_GRPO = {"loss_type": "dr_grpo", "epsilon": 0.2, "scale_rewards": "none"}
CISPO = {"loss_type": "cispo", "epsilon_high": 5.0}
GSPO = {"epsilon": 3e-4, "epsilon_high": 4e-4, "importance_sampling_level": "sequence"}
LEVEL = {"importance_sampling_level": "sequence"}
TIS = {**GRPO, "vllm_importance_sampling_clip_max": 2.0}
NO_SWITCH = "estimator.switch=null"
OVERLONG = ("estimator.shaping.soft_limit=3", "rollout.refill=null")
KL = "estimator.terms.kl"

PAIRS = {
    "grpo": Pair("grpo", GRPO),
    "grpo, sequence level": Pair("grpo", {**GRPO, **LEVEL}, variation=(SEQUENCE,)),
    "grpo, two-sided": Pair(
        "grpo",
        {**GRPO, "delta": 3.0},
        variation=(f"{RL}.mask={{use: dual_clip, low: 0.2, high: 0.2, ratio_max: 3.0}}",),
    ),
    "gspo": Pair("gspo", {**GSPO, "loss_type": "grpo"}),
    "luspo": Pair("gspo", {**GSPO, "loss_type": "luspo"}, variation=(f"{RL}.reduction=sequence_sum",)),
    "dapo": Pair("dapo", DAPO, (NORM, NO_SWITCH), OVERLONG, peer={"cache": 4}),
    "dapo, no penalty": Pair("dapo", DAPO, variation=("estimator.shaping=null",)),
    "dapo, sequence level": Pair(
        "dapo", {**DAPO, **LEVEL}, (NORM, NO_SWITCH), (*OVERLONG, SEQUENCE), peer={"cache": 4}
    ),
    "drgrpo": Pair("drgrpo", DR_GRPO, ()),
    "drgrpo, sequence level": Pair("drgrpo", {**DR_GRPO, **LEVEL}, (), (SEQUENCE,)),
    "cispo": Pair("cispo", CISPO),
    "cispo, sequence level": Pair("cispo", {**CISPO, **LEVEL}, variation=(SEQUENCE,)),
    "grpo_kl": Pair("grpo_kl", {**GRPO, "beta": 0.04, "use_bias_correction_kl": False}),
    "grpo_kl, corrected": Pair(
        "grpo_kl", {**GRPO, "beta": 0.04}, (NORM, f"{KL}.denominator=old", f"{KL}.advantage.estimator=k2")
    ),
    "grpo_tis": Pair("grpo_tis", {**TIS, "vllm_importance_sampling_mode": "token_truncate"}, peer={"engine": True}),
    "grpo_tis, sequence level": Pair(
        "grpo_tis",
        {**TIS, "vllm_importance_sampling_mode": "sequence_truncate"},
        variation=(f"{RL}.mask.1.level=sequence",),
        peer={"engine": True},
    ),
}


@dataclass(frozen=True)
class Rollouts:
    """A case, every prompt of which has as many rollouts, and the micro-batches that TRL cuts it into."""

    case: Case
    pieces: int = 1

    @property
    def generations(self) -> int:
        return self.case.prompts[0].rollouts

    @property
    def batch(self) -> Batch:
        """The case's, with an engine so far off that its correction meets its cap."""
        batch = self.case.batch
        return fresh(replace(batch, rollout_logp=batch.reference_logp))


PINNED = (
    Rollouts(Case((Prompt(4), Prompt(4, 0, "wild"), Prompt(4, 0, "right"), Prompt(4, 0, "wrong")), "far", BUDGET), 2),
    Rollouts(Case((Prompt(6, 0, "wild"), Prompt(6)), "near", BUDGET, seed=1), 3),
    Rollouts(Case((Prompt(3, 0, "wild"), Prompt(3)), "none", 5, seed=2)),
    Rollouts(Case((Prompt(2, 0, "wild"),), "far", 1, seed=3), 2),
    Rollouts(Case((Prompt(5, 0, "right"), Prompt(5, 0, "wrong")), "far", BUDGET, seed=4)),
    Rollouts(Case((Prompt(6), *[Prompt(6, 0, "wild")] * 15), "far", 1, seed=5)),
)


@st.composite
def rollouts(draw: st.DrawFn) -> Rollouts:
    generations = draw(st.integers(2, 6))
    prompt = st.builds(Prompt, st.just(generations), st.just(0), st.sampled_from(("mixed", "wild", "right", "wrong")))
    case = st.builds(
        Case,
        prompts=st.lists(prompt, min_size=1, max_size=4).map(tuple),
        old=st.sampled_from(("near", "far", "none", "equal")),
        longest=st.integers(1, BUDGET),
        seed=st.integers(0, 2**16),
    )
    drawn = draw(case)
    size = generations * len(drawn.prompts)
    return Rollouts(drawn, draw(st.sampled_from([pieces for pieces in (1, 2, 3) if size % pieces == 0])))


def pinned(test: Callable[..., None]) -> Callable[..., None]:
    """The test with every pinned batch as an explicit example."""
    for each in PINNED:
        test = example(each)(test)
    return test


@pytest.fixture(scope="module", autouse=True)
def _trl() -> None:
    """These tests are about one version of TRL, and whoever selects them has to have it."""
    try:
        version = importlib.metadata.version("trl")
    except importlib.metadata.PackageNotFoundError:
        pytest.fail("these tests compare with TRL, which isn't installed: pip install -e '.[test,peers]'")
    if not version.startswith("1.16."):
        pytest.fail(f"these tests compare with TRL 1.16, and this is {version}: pip install -e '.[test,peers]'")


@pytest.fixture(scope="module")
def peer_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Peer]:
    """The TRL side of a pair, for a number of micro-batches and of optimizer steps; made once each."""
    folder = save_model(tmp_path_factory.mktemp("model"))

    @cache
    def made(name: str, pieces: int = 1, steps: int = 1) -> Peer:
        cut = {"gradient_accumulation_steps": pieces, "steps_per_generation": pieces * steps}
        settings = {"max_completion_length": BUDGET, **PAIRS[name].settings, **cut}
        return Peer(folder, settings, **PAIRS[name].peer)

    return made


def theirs(peer: Peer, drawn: Rollouts, batch: Batch) -> Tensor:
    """TRL's loss, summed over its micro-batches; its gradient goes to the batch's logp."""
    return torch.stack([peer.loss(inputs) for inputs in prepared(peer, drawn, batch)]).sum()


def prepared(peer: Peer, drawn: Rollouts, batch: Batch) -> list[dict[str, Any]]:
    """The micro-batches that TRL makes of the batch."""
    peer.read(batch)
    stale = batch.old_logp is not None
    return peer.micro_batches(Script.of(batch), drawn.generations, stale=stale, seed=drawn.case.seed)


def gradient(loss: Tensor, batch: Batch) -> Tensor:
    """(T,) with respect to the batch's logp."""
    assert batch.logp is not None
    (found,) = torch.autograd.grad(loss, batch.logp)
    assert found.dtype == torch.float64
    return found


def weigh(estimator: Estimator, batch: Batch) -> Weighed:
    """The batch as one optimizer step."""
    return estimator.weigh(batch, estimator.count(batch, estimator.credit(batch)))


def assert_same(ours: Tensor, trls: Tensor) -> None:
    torch.testing.assert_close(ours, trls, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", PAIRS)
@pinned
@given(rollouts())
def test_the_gradient_is_trls(peer_of: Callable[..., Peer], name: str, drawn: Rollouts) -> None:
    batch = drawn.batch
    trls = gradient(theirs(peer_of(name, drawn.pieces), drawn, batch), batch)
    assert_same(gradient(PAIRS[name].estimator().loss(batch), batch), trls)


@pytest.mark.parametrize("name", ["cispo", "cispo, sequence level"])
@pinned
@given(rollouts())
def test_cispo_is_a_surrogate_itself_so_its_value_is_trls_too(
    peer_of: Callable[..., Peer], name: str, drawn: Rollouts
) -> None:
    batch = drawn.batch
    assert_same(PAIRS[name].estimator().loss(batch), theirs(peer_of(name, drawn.pieces), drawn, batch))


@pytest.mark.parametrize("name", PAIRS)
def test_the_pinned_batches_leave_the_bounds_whichever_way_they_are_pushed(name: str) -> None:
    """Otherwise agreement would say little about bounds."""
    up = down = 0
    for drawn in PINNED:
        weights = weigh(PAIRS[name].estimator(), drawn.batch).terms["rl"]
        up += int(((weights.mask != 1) & (weights.advantage > 0)).sum())
        down += int(((weights.mask != 1) & (weights.advantage < 0)).sum())
    assert min(up, down) >= 5


@pytest.mark.parametrize(
    ("name", "convention"), [(name, convention) for name, pair in PAIRS.items() for convention in pair.conventions]
)
def test_each_convention_is_needed(peer_of: Callable[..., Peer], name: str, convention: str) -> None:
    drawn = PINNED[0]
    batch = drawn.batch
    trls = gradient(theirs(peer_of(name, drawn.pieces), drawn, batch), batch)
    ours = gradient(PAIRS[name].estimator(without=convention).loss(batch), batch)
    assert float((ours - trls).norm() / trls.norm()) > 1e-5


@pytest.mark.parametrize("name", ["grpo", "gspo", "dapo", "drgrpo", "cispo"])
def test_several_optimizer_steps_over_one_batch_differ_in_the_count_of_tokens_alone(
    peer_of: Callable[..., Peer], name: str
) -> None:
    peer, drawn, steps = peer_of(name, 1, 2), PINNED[0], 2
    batch, estimator = drawn.batch, PAIRS[name].estimator()
    credit = estimator.credit(batch)
    apart = []
    for inputs in prepared(peer, drawn, batch):
        rows = torch.zeros(batch.size, dtype=torch.bool)
        rows[batch.trajectory[inputs["completion_ids"][:, 0]]] = True
        own = batch.select(rows)
        ours = gradient(estimator.weigh(own, estimator.count(own, credit.select(batch, rows))).loss, batch)
        average = batch.trajectory.numel() / steps
        apart.append(own.trajectory.numel() / average if name in ("dapo", "cispo") else 1.0)
        assert_same(ours * apart[-1], gradient(peer.loss(inputs), batch))
    assert len(apart) == steps
    assert (max(apart) > 1.05) == (name in ("dapo", "cispo"))


def written(prompts: int, generations: int, seed: int) -> Script:
    """Random text, ragged on both sides."""
    random = torch.Generator().manual_seed(seed)

    def text(longest: int) -> list[int]:
        length = int(torch.randint(1, longest + 1, (), generator=random))
        return torch.randint(0, models.SIZE, (length,), generator=random).tolist()

    asked = [text(9) for _ in range(prompts)]
    size = prompts * generations
    return Script(
        prompts=[asked[i // generations] for i in range(size)],
        responses=[text(BUDGET) for _ in range(size)],
        rewards=(torch.randint(0, 9, (size,), generator=random) / 8).tolist(),
    )


def read(parameters: dict[str, Tensor], script: Script) -> tuple[Tensor, nn.Module]:
    """(T,) our policy's log-probs of the responses, and the model they come from."""
    policy = models.policy()
    policy.model.load_state_dict(parameters)
    sequences = list(zip(script.prompts, script.responses, strict=True))
    return policy.log_probs(sequences, torch.ones(len(sequences)))[0], policy.model


def as_batch(script: Script, generations: int, logp: Tensor, start: Tensor) -> Batch:
    """The script's rollouts, drawn from the policy at the start, which is the reference as well."""
    size = len(script.rewards)
    length = torch.tensor([len(response) for response in script.responses])
    return Batch(
        logp=logp,
        trajectory=torch.arange(size).repeat_interleave(length),
        group=torch.arange(size) // generations,
        demonstration=torch.zeros(size, dtype=torch.bool),
        reward=torch.tensor(script.rewards),
        old_logp=start,
        reference_logp=start,
    )


def distance(ours: dict[str, Tensor], trls: dict[str, Tensor]) -> float:
    """‖ours − trls‖ / ‖trls‖ over all parameters."""
    assert ours.keys() == trls.keys()
    a, b = (torch.cat([named[name].flatten().double() for name in trls]) for named in (ours, trls))
    return float((a - b).norm() / b.norm())


RATES = {"grpo": 0.03, "gspo": 5e-5, "dapo": 0.1, "drgrpo": 0.3, "cispo": 1.0, "grpo_kl": 0.03}
"""Learning rates of gradient descent at which after a step some tokens have left the bounds, and some have not."""
PROMPTS, GENERATIONS, STEPS = 3, 4, 3
TRAINING = {
    "per_device_train_batch_size": PROMPTS * GENERATIONS // 2,
    "gradient_accumulation_steps": 2,
    "num_generations": GENERATIONS,
    "num_iterations": STEPS,
    "max_steps": STEPS,
    "max_completion_length": BUDGET,
    "optim": "sgd",
    "lr_scheduler_type": "constant",
}
"""Optimizer steps over one batch of rollouts, each of two micro-batches that hold pieces of every prompt."""


@pytest.mark.parametrize("name", RATES)
def test_a_training_run_of_trls_has_our_gradients(tmp_path: Path, name: str) -> None:
    pair, script = PAIRS[name], written(PROMPTS, GENERATIONS, seed=7)
    settings = {**TRAINING, **pair.settings, "learning_rate": RATES[name]}
    taken = Peer(save_model(tmp_path), settings, **pair.peer, prompts=PROMPTS).train(script)
    assert len(taken) == STEPS
    start = read(taken[0][0], script)[0].detach()
    outside = []
    for parameters, trls in taken:
        logp, model = read(parameters, script)
        weighed = weigh(pair.estimator(), as_batch(script, GENERATIONS, logp, start))
        weighed.loss.backward()
        ours = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert distance(ours, trls) < 1e-5
        outside.append(float((weighed.terms["rl"].mask != 1).double().mean()))
    assert outside[0] == 0
    assert all(0 < share < 1 for share in outside[1:])
