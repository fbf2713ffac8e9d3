"""What other models say of the trajectories: the critic's values, and the reference model's log-probs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support import tiny
from support import tiny_models as models
from transformers import AutoModelForTokenClassification

import upge
from upge.model import ModelError, Policy, load_critic
from upge.train.learner import regression
from upge.train.run import train

Run = Callable[..., Path]
ROOT = Path(__file__).parents[2]
CLIP = {"use": "clip", "low": 0.2, "high": 0.2}
PPO = {"source": "rollouts", "mask": CLIP, "denominator": "old", "advantage": "gae", "reduction": "token_mean"}
GRPO = {**PPO, "advantage": "group_norm", "reduction": "sequence_mean"}
KL = {
    "source": "rollouts",
    "denominator": "current",
    "advantage": {"use": "kl", "estimator": "k3", "coefficient": 0.04},
    "reduction": "sequence_mean",
}
SEQUENCES = [((7, 8, 9), (10, 11, 12, 13)), ((20,), (21, 22)), ((30, 31), (32,))]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs the tiny recipe with these terms and overrides, in a folder of its own."""

    def start(name: str, terms: dict[str, Any], *overrides: str, **blocks: Any) -> Path:
        path = tiny.recipe(tmp_path, estimator={"terms": terms}, **blocks)
        recipe = json.loads(path.read_text())
        if "value" in upge.Estimator.model_validate(recipe["estimator"] | {"terms": _long(terms)}).needs():
            path.write_text(json.dumps(recipe | {"critic": {"lr": 0.01, "clip_norm": 1.0}}))
        return train(upge.load(path, [f"log.folder={tmp_path / name}", *overrides]))

    return start


def _long(terms: dict[str, Any]) -> dict[str, Any]:
    """The terms with what follows the recipe filled in."""
    return {name: {**term, "reduction": "token_mean"} for name, term in terms.items()}


def metrics(folder: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["phase"] == "train"]


def difference(a: Path, b: Path, model: str) -> float:
    ours, theirs = (load_file(folder / model / "model.safetensors") for folder in (a, b))
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


# The critic.


@pytest.mark.parametrize("model", [models.llama, models.gpt2], ids=["llama", "gpt2"])
def test_a_new_critic_expects_nothing(model: Callable[[], Any]) -> None:
    values = load_critic(models.policy(model())).values(SEQUENCES)
    assert values.shape == (7,)
    assert bool((values == 0).all())


@pytest.mark.parametrize("model", [models.llama, models.gpt2], ids=["llama", "gpt2"])
def test_a_value_is_of_the_state_before_its_token(model: Callable[[], Any]) -> None:
    """Token t's value changes with what came before it, and with nothing else."""
    critic = load_critic(models.policy(model()))
    torch.manual_seed(0)
    for parameter in critic.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    values = critic.values(SEQUENCES)
    for token in range(4):
        response = list(SEQUENCES[0][1])
        response[token] += 40
        moved = critic.values([(SEQUENCES[0][0], tuple(response)), *SEQUENCES[1:]])
        same = (moved - values).abs() < 1e-5
        assert bool(same[: token + 1].all())
        assert not bool(same[token + 1 : 4].any())
        assert bool(same[4:].all())


def test_a_critic_has_the_policys_body() -> None:
    policy = models.policy()
    critic = load_critic(policy)
    body = policy.model.base_model.state_dict()
    assert body.keys() == critic.model.base_model.state_dict().keys()
    assert all(torch.equal(x, body[name]) for name, x in critic.model.base_model.state_dict().items())
    assert not {id(p) for p in critic.model.parameters()} & {id(p) for p in policy.model.parameters()}


@pytest.mark.parametrize(
    ("value", "old", "target", "gradient"),
    [
        (0.5, 0.5, 1.0, -0.5),  # as it was: the plain error
        (0.6, 0.5, 1.0, -0.4),  # within the clip
        (0.8, 0.5, 1.0, 0.0),  # moved by more than 0.2 towards the target: enough
        (0.3, 0.5, 1.0, -0.7),  # moved away: back
        (1.2, 0.5, 1.0, 0.0),  # beyond the target, clamped is further off
        (0.1, 0.5, 0.0, 0.0),  # far enough, downwards
        (0.9, 0.5, 0.0, 0.9),  # away, upwards
    ],
)
def test_the_critics_regression_is_clipped(value: float, old: float, target: float, gradient: float) -> None:
    leaf = torch.tensor([value], dtype=torch.float64, requires_grad=True)
    loss = regression(leaf, torch.tensor([old]).double(), torch.tensor([target]).double(), clip=0.2)
    assert loss.item() == pytest.approx(
        max((value - target) ** 2, (min(max(value, old - 0.2), old + 0.2) - target) ** 2) / 2
    )
    loss.backward()
    assert float(leaf.grad) == pytest.approx(gradient)  # type: ignore[arg-type]


def test_a_critic_learns_what_to_expect(run: Run) -> None:
    """Of the tiny task's demonstrations those that are right can be told by their prompts."""
    shown = {**PPO, "source": "demonstrations", "mask": None, "denominator": "current"}
    lines = metrics(run("shown", {"sft": shown}, "train.steps=40", "optimizer.lr=0.0", "eval.splits=[]"))
    assert lines[0]["critic/value"] == 0
    assert 0 < lines[0]["critic/return"] < 1
    assert lines[0]["critic/loss"] == pytest.approx(lines[0]["critic/return"] / 2)  # V = 0, R in {0, 1}
    assert lines[-1]["critic/loss"] < 0.01


def test_the_critic_is_left_in_the_run_folder_and_can_be_taken_up(run: Run) -> None:
    first = run("first", {"rl": PPO})
    assert AutoModelForTokenClassification.from_pretrained(first / "critic").num_labels == 1
    again = run("again", {"rl": PPO}, f"critic.path={first / 'critic'}", "critic.lr=0.0", "train.steps=1")
    assert difference(first, again, "critic") == 0
    assert metrics(again)[0]["critic/value"] != 0


def test_a_resumed_critic_is_the_critic_that_never_stopped(run: Run, tmp_path: Path) -> None:
    several = ("train.save_every=2", "train.minibatches=2", "train.epochs=2")
    through = run("through", {"rl": PPO}, *several)
    stopped = run("stopped", {"rl": PPO}, *several, "train.steps=4")
    recipe = upge.load(tmp_path / "recipe.yaml", [f"log.folder={stopped}", *several])
    train(recipe, resume=stopped)
    assert metrics(through) == metrics(stopped)
    assert difference(through, stopped, "model") == difference(through, stopped, "critic") == 0


def test_micro_batches_do_not_change_the_critic(run: Run) -> None:
    recorded = run("recorded", {"rl": PPO}, config=tiny.GPT2)
    engine = f"rollout.engine={{use: recorded, run: {recorded}}}"
    replay = [engine, "model.dtype=float64", "eval.splits=[]", "train.minibatches=2", "train.epochs=2"]
    whole = run("whole", {"rl": PPO}, *replay, "train.micro_batch_tokens=1000000", config=tiny.GPT2)
    single = run("single", {"rl": PPO}, *replay, "train.micro_batch_tokens=1", config=tiny.GPT2)
    assert difference(whole, single, "critic") < 1e-10
    assert difference(whole, single, "model") < 1e-10


@pytest.mark.heavy
def test_two_processes_teach_a_critic_what_one_does(run: Run, tmp_path: Path) -> None:
    terms = {"rl": PPO, "kl": KL}
    one = run("one", terms)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--no-python"]
    upge_run = [str(Path(sys.executable).parent / "upge"), "run", str(tmp_path / "recipe.yaml")]
    command = [*torchrun, *upge_run, f"log.folder={tmp_path / 'two'}"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    assert difference(one, tmp_path / "two", "critic") < 1e-4
    assert difference(one, tmp_path / "two", "model") < 1e-4
    assert metrics(one)[0]["critic/loss"] == pytest.approx(metrics(tmp_path / "two")[0]["critic/loss"])


def test_a_critic_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    other = models.policy()
    other.tokenizer.add_tokens(["one more"])
    other.save(tmp_path / "other")
    with pytest.raises(ModelError, match="other ids"):
        load_critic(models.policy(), str(tmp_path / "other"))


def test_the_policy_does_not_know_that_there_is_a_critic() -> None:
    for name in ("policy", "log_probs", "chat_template", "loading"):
        assert "critic" not in (ROOT / "upge" / "model" / f"{name}.py").read_text().lower()


# The reference model.


def test_the_reference_is_the_policy_as_it_started(run: Run) -> None:
    lines = metrics(run("kl", {"rl": GRPO, "kl": KL}, "optimizer.lr=0.02"))
    assert lines[0]["kl/advantage"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["kl/advantage"] > 1e-4


def test_a_penalty_holds_the_policy_back(run: Run) -> None:
    strong = {**KL, "advantage": {**KL["advantage"], "coefficient": 100.0}}
    free, held = (
        run(name, terms, "train.steps=20", "optimizer.lr=0.01", "eval.splits=[]")
        for name, terms in (("free", {"rl": GRPO, "kl": {**KL, "weight": 1e-9}}), ("held", {"rl": GRPO, "kl": strong}))
    )
    moved = [metrics(folder)[-1]["kl/advantage"] / beta for folder, beta in ((free, 0.04), (held, 100.0))]
    assert moved[1] < moved[0] / 3


def test_a_resumed_run_keeps_its_reference(run: Run, tmp_path: Path) -> None:
    terms = {"rl": GRPO, "kl": KL}
    through = run("through", terms, "train.save_every=2")
    stopped = run("stopped", terms, "train.save_every=2", "train.steps=4")
    train(upge.load(tmp_path / "recipe.yaml", [f"log.folder={stopped}", "train.save_every=2"]), resume=stopped)
    assert metrics(through) == metrics(stopped)
    assert difference(through, stopped, "model") == 0


def test_another_model_can_be_the_reference(run: Run, tmp_path: Path) -> None:
    first = run("first", {"rl": GRPO}, "optimizer.lr=0.05")
    lines = metrics(run("second", {"rl": GRPO, "kl": KL}, f"reference={first}"))
    assert lines[0]["kl/advantage"] > 1e-4


def test_no_reference_and_no_critic_are_opened_that_no_part_reads(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("opened without need")

    monkeypatch.setattr("upge.model.models.Models.open", refuse)
    monkeypatch.setattr("upge.train.learner.load_critic", refuse)
    run("plain", {"rl": GRPO}, "train.steps=1", "eval.splits=[]")
    with pytest.raises(AssertionError):
        run("kl", {"rl": GRPO, "kl": KL}, "train.steps=1", "eval.splits=[]")


def test_a_cost_in_the_reward_asks_the_models_before_credit(run: Run) -> None:
    """`kl_in_reward` reads π_old and π_0 before there is any forward pass with gradient."""
    shaped = {"terms": {"rl": {**GRPO, "advantage": "batch_norm"}}}
    path = "estimator.shaping={use: kl_in_reward, coefficient: 0.5}"
    lines = metrics(run("shaped", shaped["terms"], path, "optimizer.lr=0.02"))
    plain = metrics(run("plain", shaped["terms"], "optimizer.lr=0.02"))
    assert lines[0]["grad_norm"] == pytest.approx(plain[0]["grad_norm"], rel=1e-4)  # π_old is π_0 at first
    assert lines[-1]["grad_norm"] != pytest.approx(plain[-1]["grad_norm"], rel=1e-3)


@pytest.mark.needs("peft")
def test_under_an_adapter_the_reference_is_the_policy_without_it() -> None:
    from peft import LoraConfig, get_peft_model

    base = models.policy(models.llama())
    hot = torch.ones(len(SEQUENCES))
    before = base.log_probs(SEQUENCES, hot)[0].detach()
    adapted = get_peft_model(base.model, LoraConfig(target_modules=["q_proj", "v_proj"], r=2))
    policy = Policy(adapted, base.tokenizer)
    reference = models.beside(policy).open(None)
    torch.manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    assert reference.policy.model is adapted
    torch.testing.assert_close(reference.log_probs(SEQUENCES, hot), before)
    assert not torch.allclose(policy.log_probs(SEQUENCES, hot)[0], before, atol=1e-3)
    assert all(p.requires_grad for n, p in adapted.named_parameters() if "lora" in n)
