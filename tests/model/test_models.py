"""The models of a run beside the one in training: each is opened once, and equal questions cost one pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support import tiny_models as models
from support.model_probes import HOT, SEQUENCES
from torch import nn

from upge.ema import Ema
from upge.model import ModelError, Models, Policy

LONGER = [*SEQUENCES, ((5,), (6,))]


@pytest.fixture
def policy() -> Policy:
    return models.policy()


def saved(policy: Policy, folder: Path) -> str:
    """The folder of a model with the policy's vocabulary and other weights."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(0.5)
    policy.save(folder)
    return str(folder)


def nudge(policy: Policy, by: float = 0.1) -> None:
    """What an optimizer step does."""
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.requires_grad:
                parameter.add_(by)


def passes(policy: Policy) -> list[int]:
    """The sizes of the questions that this model is asked from now on, one for each pass."""
    sizes: list[int] = []
    policy.model.register_forward_pre_hook(
        lambda _, given, named: sizes.append(named["input_ids"].shape[0]), with_kwargs=True
    )
    return sizes


def test_a_path_is_opened_once_in_whatever_form_it_is_written(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(models.policy(), tmp_path / "run" / "model")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    beside = models.beside(policy)
    forms = ["run", "./run", "run/model", str(tmp_path / "run"), "link", "run/../run/model/"]
    assert len({beside.open(form) for form in forms}) == 1
    assert beside.open(None) is beside.open(None)
    assert beside.open("policy") is beside.open("policy")
    assert beside.open("policy", ema=Ema(decay=0.5)) is beside.open("policy", ema=Ema(decay=0.5, every=1))
    others = [beside.open("run"), beside.open(None), beside.open("policy")]
    others += [beside.open("policy", ema=Ema(decay=0.5, every=every)) for every in (1, 2)]
    assert len(set(others)) == 5


def test_a_folder_called_policy_is_opened_by_another_form_of_its_path(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(models.policy(), tmp_path / "policy")
    monkeypatch.chdir(tmp_path)
    beside = models.beside(policy)
    assert beside.open("policy").policy is policy
    assert beside.open("./policy").policy is not policy


def test_a_model_answers_as_it_is_where_it_was_saved(policy: Policy, tmp_path: Path) -> None:
    teacher = models.policy()
    path = saved(teacher, tmp_path / "teacher")
    opened = models.beside(policy).open(path)
    wanted = teacher.log_probs(SEQUENCES, HOT * 0.7)[0]
    found = opened.log_probs(SEQUENCES, HOT * 0.7)
    torch.testing.assert_close(found, wanted.detach())
    assert not found.requires_grad
    assert not any(parameter.requires_grad for parameter in opened.policy.model.parameters())
    assert not opened.sharded


def test_equal_questions_make_one_pass(policy: Policy) -> None:
    beside = models.beside(policy)
    start, sizes = beside.open(None), []
    start.log_probs(SEQUENCES, HOT)  # also the first look at how the model can be asked
    sizes = passes(start.policy)
    first = start.log_probs(SEQUENCES, HOT)
    assert not sizes
    first.fill_(torch.nan)  # whoever asks may write into the answer
    assert start.log_probs(list(SEQUENCES), HOT.clone()).isfinite().all()
    assert not sizes
    for sequences, temperature in ((SEQUENCES, HOT * 2), (LONGER, torch.ones(4)), (SEQUENCES, HOT * 2)):
        before = len(sizes)
        start.log_probs(sequences, temperature)
        assert len(sizes) > before, "another question, or one that was not the last"


def test_a_question_without_response_tokens_makes_no_pass(policy: Policy) -> None:
    start = models.beside(policy).open(None)
    sizes = passes(start.policy)
    assert start.log_probs([], torch.ones(0)).shape == start.log_probs([((5,), ())], torch.ones(1)).shape == (0,)
    assert not sizes


def test_a_temperature_of_more_digits_than_the_model_changes_nothing(policy: Policy) -> None:
    start = models.beside(policy).open(None)
    found = start.log_probs(SEQUENCES, torch.full((3,), 0.7, dtype=torch.float64))
    assert found.dtype == torch.float32
    assert torch.equal(found, start.log_probs(SEQUENCES, HOT * 0.7))


def test_the_policy_is_asked_as_it_is_now_and_the_start_stays(policy: Policy, tmp_path: Path) -> None:
    beside = models.beside(policy)
    now, start, other = beside.open("policy"), beside.open(None), beside.open(saved(models.policy(), tmp_path / "a"))
    before = {model: model.log_probs(SEQUENCES, HOT) for model in (now, start, other)}
    assert torch.equal(before[now], before[start])
    sizes = passes(policy)
    assert torch.equal(now.log_probs(SEQUENCES, HOT), before[now])
    assert not sizes
    nudge(policy)
    beside.moved()
    assert torch.equal(now.log_probs(SEQUENCES, HOT), policy.log_probs(SEQUENCES, HOT)[0].detach())
    assert not torch.allclose(now.log_probs(SEQUENCES, HOT), before[now], atol=1e-3)
    assert torch.equal(start.log_probs(SEQUENCES, HOT), before[start])
    assert torch.equal(other.log_probs(SEQUENCES, HOT), before[other])


def test_asking_the_policy_leaves_its_gradient_alone(policy: Policy) -> None:
    beside = models.beside(policy)
    asked = [beside.open("policy"), beside.open("policy", ema=Ema(decay=0.5))]
    nudge(policy)
    wanted, found = [], []
    for where in (wanted, found):
        policy.model.zero_grad()
        logp = policy.log_probs(SEQUENCES, HOT)[0]
        if where is found:  # between the forward pass and the backward pass
            assert not torch.equal(*(model.log_probs(SEQUENCES, HOT) for model in asked))
        logp.sum().backward()
        where.extend(x.grad.clone() for x in policy.model.parameters() if x.grad is not None)
    assert all(map(torch.equal, wanted, found))


def test_passes_have_the_policys_numerics(tmp_path: Path, policy: Policy) -> None:
    """In bfloat16 a model of the policy's own weights says what the policy says."""

    class Halves:
        def __getattr__(self, name: str) -> Any:
            return {"device": torch.device("cpu"), "num_processes": 1}[name]

        def autocast(self) -> Any:
            return torch.autocast("cpu", torch.bfloat16)

    beside = Models(policy, Halves())  # type: ignore[arg-type]
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        wanted = policy.log_probs(SEQUENCES, HOT)[0]
    assert torch.equal(beside.open(None).log_probs(SEQUENCES, HOT), wanted)
    assert not torch.equal(models.beside(policy).open(None).log_probs(SEQUENCES, HOT), wanted)


def test_a_model_that_is_not_trained_is_placed_and_the_policy_is_not(policy: Policy, tmp_path: Path) -> None:
    placed: list[nn.Module] = []
    beside = Models(policy, models.beside(policy).accelerator, placed.append)
    for path in (saved(models.policy(), tmp_path / "a"), None, "policy"):
        beside.open(path)
    assert placed == [beside.open(path).policy.model for path in (str(tmp_path / "a"), None)]


def of_other_tokens(folder: Path) -> str:
    other = models.policy()
    other.tokenizer.add_tokens(["one more"])
    return saved(other, folder / "other")


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        (of_other_tokens, "its tokens have other ids than the policy's"),
        (lambda folder: str(folder / "nowhere"), "no such folder"),
        (lambda folder: str(folder), "no config.json in this folder"),
    ],
    ids=["other tokens", "nowhere", "no model"],
)
def test_what_cannot_be_opened_is_named(
    policy: Policy, tmp_path: Path, path: Callable[[Path], str], fault: str
) -> None:
    named = path(tmp_path)
    with pytest.raises(ModelError, match=fault) as caught:
        models.beside(policy).open(named)
    assert str(caught.value).startswith(named)


def test_a_fault_of_the_policys_own_settings_still_says_of_which_model(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: str, **_: Any) -> Policy:
        raise ModelError("model: it has no room")

    monkeypatch.setattr("upge.model.models.load", fails)
    path = saved(models.policy(), tmp_path / "teacher")
    with pytest.raises(ModelError, match=f"^{path}: model: it has no room$"):
        models.beside(policy).open(path)


def test_only_the_policy_has_a_moving_average(policy: Policy) -> None:
    for path in (None, "somewhere"):
        with pytest.raises(ValueError, match="only the policy"):
            models.beside(policy).open(path, ema=Ema(decay=0.5))
