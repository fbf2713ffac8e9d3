"""The moving average of the policy's trained parameters: what it is, who computes with it, how it is saved."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from support import tiny
from support import tiny_models as models
from support.model_probes import HOT, SEQUENCES
from torch import Tensor
from transformers import PreTrainedModel

import upge
from upge.ema import Ema
from upge.errors import InputError
from upge.model import Policy, load, load_policy
from upge.model.average import MovingAverage
from upge.recipe.schema import Lora
from upge.train import checkpoint
from upge.train.checkpoint import Progress
from upge.train.learner import open_learner


def trained(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: x for name, x in model.named_parameters() if x.requires_grad}


def whole(dtype: torch.dtype = torch.float32) -> Policy:
    return models.policy(models.llama().to(dtype))


def adapted(folder: Path) -> Policy:
    models.policy().save(folder)
    return load(str(folder), lora=Lora(rank=2, alpha=6.0))


def update(policy: Policy, seed: int) -> dict[str, Tensor]:
    """Move every trained parameter; returns what they are now, in float64."""
    drawn = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for x in trained(policy.model).values():
            x.add_(torch.randn(x.shape, generator=drawn).to(x) * 0.05)
    return {name: x.detach().to(torch.float64, copy=True) for name, x in trained(policy.model).items()}


def textbook(policy: Policy, average: MovingAverage, decay: float, every: int = 1) -> dict[str, Tensor]:
    """s after five updates, by the formula, in float64; the average learns the same."""
    s = {name: x.detach().to(torch.float64, copy=True) for name, x in trained(policy.model).items()}
    for step in range(5):
        now = update(policy, step)
        assert average.learned(step) == ((step + 1) % every == 0)
        if (step + 1) % every == 0:
            s = {name: decay * s[name] + (1 - decay) * now[name] for name in s}
    return s


@pytest.mark.parametrize(("decay", "every"), [(0.9, 1), (0.3, 2), (0.999, 1)])
@pytest.mark.parametrize("kind", ["whole", "float64", pytest.param("lora", marks=pytest.mark.needs("peft"))])
def test_the_average_is_the_textbooks(kind: str, decay: float, every: int, tmp_path: Path) -> None:
    policy = adapted(tmp_path) if kind == "lora" else whole(torch.float64 if kind == "float64" else torch.float32)
    average = MovingAverage(policy.model, Ema(decay=decay, every=every))
    wanted, found = textbook(policy, average, decay, every), average.state(keep=True)
    assert found.keys() == wanted.keys()
    bound = 1e-14 if kind == "float64" else 3e-7
    for name, x in wanted.items():
        torch.testing.assert_close(found[name].double(), x, rtol=bound, atol=bound)
    assert all((kind == "lora") == (".lora_" in name) for name in found)


def test_sixteen_bits_are_averaged_in_float32() -> None:
    """A hundredth of an update would be lost on them."""
    policy = whole(torch.bfloat16)
    average = MovingAverage(policy.model, Ema(decay=0.99))
    wanted = textbook(policy, average, 0.99)
    for name, x in average.state(keep=True).items():
        assert x.dtype == torch.float32
        torch.testing.assert_close(x.double(), wanted[name], rtol=1e-6, atol=1e-7)
    with average.lent():
        lent = {name: x.detach().clone() for name, x in trained(policy.model).items()}
    assert all(torch.equal(x.bfloat16(), lent[name]) for name, x in average.state(keep=True).items())


def test_without_a_memory_it_is_a_copy_each_time() -> None:
    policy = whole()
    average = MovingAverage(policy.model, Ema(decay=0, every=2))
    start = average.state(keep=True)
    first = update(policy, 0)
    average.learned(0)
    assert all(torch.equal(x, start[name]) for name, x in average.state(keep=True).items())
    second = update(policy, 1)
    average.learned(1)
    assert all(torch.equal(x.double(), second[name]) for name, x in average.state(keep=True).items())
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_a_pass_is_of_the_average_and_the_policy_is_back_after_it() -> None:
    policy = whole()
    beside = models.beside(policy)
    slow, start = beside.open("policy", ema=Ema(decay=0.5)), beside.open(None)
    assert torch.equal(slow.log_probs(SEQUENCES, HOT), start.log_probs(SEQUENCES, HOT))
    update(policy, 0)
    kept = {name: x.detach().clone() for name, x in policy.model.named_parameters()}
    assert torch.equal(slow.log_probs(SEQUENCES, HOT), start.log_probs(SEQUENCES, HOT)), "nothing is learned yet"
    beside.learned(0)
    found = slow.log_probs(SEQUENCES, HOT)
    assert all(torch.equal(x, kept[name]) for name, x in policy.model.named_parameters())
    half = whole()
    with torch.no_grad():
        for name, x in half.model.named_parameters():
            x.add_(kept[name]).mul_(0.5)
    torch.testing.assert_close(found, half.log_probs(SEQUENCES, HOT)[0].detach(), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found, policy.log_probs(SEQUENCES, HOT)[0], atol=1e-3)


@pytest.mark.needs("peft")
def test_an_adapters_average_lies_on_the_same_base(tmp_path: Path) -> None:
    """The mean of A and of B, each by itself: not of their product."""
    policy = adapted(tmp_path)
    slow = models.beside(policy)
    asked = slow.open("policy", ema=Ema(decay=0.5))
    before = {name: x.detach().clone() for name, x in policy.model.named_parameters()}
    update(policy, 0)
    after = {name: x.detach().clone() for name, x in policy.model.named_parameters()}
    slow.learned(0)
    found = asked.log_probs(SEQUENCES, HOT)
    assert all(torch.equal(x, after[name]) for name, x in policy.model.named_parameters())
    with torch.no_grad():
        for name, x in policy.model.named_parameters():
            x.copy_((before[name] + after[name]) / 2)
    torch.testing.assert_close(found, policy.log_probs(SEQUENCES, HOT)[0].detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_lent_parameters_are_given_back_whatever_happens(dtype: torch.dtype) -> None:
    policy = whole(dtype)
    average = MovingAverage(policy.model, Ema(decay=0.5))
    first = next(policy.model.parameters())
    first.data.view(-1)[0] = torch.nan  # bits, not numbers, come back
    kept = {name: x.detach().clone() for name, x in policy.model.named_parameters()}
    places = [x.data_ptr() for x in policy.model.parameters()]

    def fail() -> None:
        with average.lent():
            assert not first.isnan().any()
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    bits = {torch.float32: torch.int32, torch.bfloat16: torch.int16}[dtype]
    assert all(torch.equal(x.view(bits), kept[name].view(bits)) for name, x in policy.model.named_parameters())
    assert places == [x.data_ptr() for x in policy.model.parameters()], "optimizers and FSDP keep views of them"


def test_averages_survive_a_round_trip() -> None:
    policy, settings = whole(), [Ema(decay=0.9), Ema(decay=0.9, every=2)]
    beside = models.beside(policy)
    asked = [beside.open("policy", ema=each) for each in settings]
    for step in range(3):
        update(policy, step)
        beside.learned(step)
    state, wanted = beside.state(), [model.log_probs(SEQUENCES, HOT) for model in asked]
    assert not beside.state(keep=False)
    assert not torch.equal(*wanted)
    resumed = whole()
    again = models.beside(resumed)
    theirs = [again.open("policy", ema=each) for each in reversed(settings)]
    for model in theirs:
        model.log_probs(SEQUENCES, HOT)  # an answer that no longer holds
    resumed.model.load_state_dict(policy.model.state_dict())
    again.restore(state)
    assert all(map(torch.equal, wanted, (model.log_probs(SEQUENCES, HOT) for model in reversed(theirs))))
    for step in range(3, 5):  # and both go on alike
        for one, models_ in ((policy, beside), (resumed, again)):
            update(one, step)
            models_.learned(step)
    assert all(torch.equal(x, again.state()[name]) for name, x in beside.state().items())


def test_a_checkpoint_has_the_averages_and_no_file_without_any(tmp_path: Path) -> None:
    recipe, settings = upge.load(tiny.recipe(tmp_path)), Ema(decay=0.9)
    learner, again = (
        open_learner(recipe, load_policy(**recipe.policy_arguments()), Accelerator(cpu=True)) for _ in range(2)
    )
    progress = Progress(1, measured=False, taken=0, data={}, logged={})
    bare = checkpoint.save(tmp_path / "bare", learner, progress)
    assert not (bare / checkpoint.AVERAGES).exists()
    slow, again_slow = (each.models.open("policy", ema=settings) for each in (learner, again))
    update(learner.policy, 0)
    learner.models.learned(0)
    place = checkpoint.save(tmp_path / "run", learner, progress)
    checkpoint.check(place)
    checkpoint.restore(place, again)
    sequences = [((2, 3), (4, 5, 1))]
    assert torch.equal(*(each.log_probs(sequences, torch.ones(1)) for each in (slow, again_slow)))
    with pytest.raises(InputError, match=r"only the recipe has a moving average with decay 0\.9 every 1"):
        checkpoint.restore(bare, again)


def test_another_recipes_averages_are_refused() -> None:
    beside = models.beside(whole())
    beside.restore({})
    beside.open("policy", ema=Ema(decay=0.9))
    state = beside.state()
    with pytest.raises(ValueError, match=r"only the recipe has a moving average with decay 0.9 every 1"):
        beside.restore({})
    other = {name.replace("0.9/", "0.5/"): x for name, x in state.items()}
    with pytest.raises(ValueError, match=r"only the checkpoint has a moving average with decay 0.5 every 1"):
        beside.restore(other)
    name = next(iter(state))
    with pytest.raises(ValueError, match="of other parameters"):
        beside.restore({key: x for key, x in state.items() if key != name})
    with pytest.raises(ValueError, match="is \\[1\\], not"):
        beside.restore(state | {name: torch.zeros(1)})


def test_parameters_that_deepspeed_divides_cannot_be_lent() -> None:
    policy = whole()
    next(policy.model.parameters()).ds_id = 0  # as stage 3 of ZeRO marks them
    with pytest.raises(InputError, match="set zero_stage to 1 or 2, or use FSDP"):
        models.beside(policy).open("policy", ema=Ema(decay=0.5))
