"""What each of several processes does for test_processes.py: six rollout batches with many settings, and runs.

support/forked.py starts it: ranks.py FOLDER few|all. Rank 0 leaves there the parameters after the rollout batches as
`<setting>.safetensors`, and the metrics of each of them as `<setting>.json`. `few`: what the default tier compares.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import FullyShardedDataParallelPlugin, gather_object
from safetensors.torch import save_file
from support import tiny

import upge
from upge.distributed import fsdp
from upge.distributed.accelerator import open_ranks
from upge.ema import Ema
from upge.model import shards
from upge.model.loading import load_policy
from upge.train.display import Display
from upge.train.learner import Learner, open_learner
from upge.train.run import train
from upge.train.trainer import learn
from upge.types import Problem, Trajectory
from upge_parts.engines.exchange import Exchange

RL, SFT = tiny.HYBRID["terms"]["rl"], tiny.HYBRID["terms"]["sft"]  # type: ignore[index]
K3 = {"use": "kl", "estimator": "k3", "coefficient": 0.04}
KL = {"source": "rollouts", "denominator": "current", "advantage": K3, "reduction": "sequence_mean"}
METHODS: dict[str, dict[str, Any]] = {
    "sft": {"terms": {"sft": SFT}},
    "grpo": {"terms": {"rl": {**RL, "reduction": "token_mean"}}},
    "hpt": tiny.HYBRID,
    "kl": {"terms": {"rl": {**RL, "reduction": "sequence_mean"}, "kl": KL}},
    "ppo": {"terms": {"rl": {**RL, "advantage": "gae", "reduction": "token_mean"}}},
    "lora": {"terms": {"rl": {**RL, "reduction": "sequence_mean"}, "kl": KL, "sft": SFT}},
}
ADAPTED = find_spec("peft") is not None
"""Whether models can have adapters here."""
LORA = {"lora": {"rank": 2, "alpha": 4.0}}
PIECES = {"single": 1, "three": 3 * 12, "all": 1_000_000}
"""`train.micro_batch_tokens`; no row has more than 12 tokens."""
TYPES = {"float32": tiny.LLAMA, "float64": tiny.GPT2}
TIED = "tied"
"""Another kind of model: float32, and its head is its embeddings."""
Setting = tuple[str, str, str]
WHOLE: list[Setting] = [
    *product(("sft", "grpo", "hpt"), PIECES, TYPES),
    *product([method for method in METHODS if method not in ("sft", "grpo", "hpt")], ("three",), TYPES),
]
DIVIDED: list[Setting] = list(product(METHODS, ("three",), TYPES))
"""The settings that are done with models whole on every rank, and divided over ranks."""
FEW: list[Setting] = [
    *product(("hpt",), PIECES, ("float64",)),
    *[("hpt", "three", "float32"), ("sft", "three", "float64"), ("grpo", "three", "float32")],
    *[("kl", "three", "float64"), ("ppo", "three", "float64"), ("lora", "three", "float32")],
]
"""Each method, each cut into pieces and each type once."""
FEW_DIVIDED: list[Setting] = [("hpt", "three", "float32"), ("ppo", "three", "float64"), ("lora", "three", "float32")]
"""Both types, a critic, an adapter."""
FEW_BY_ACCELERATE: list[Setting] = [("hpt", "three", "float32"), ("lora", "three", "float32")]
AVERAGED = ("hpt", "lora") if ADAPTED else ("hpt",)
"""The methods whose policy is averaged."""
PROMPTS = 8


def possible(settings: Sequence[Setting]) -> list[Setting]:
    """Those that can be done here."""
    return [setting for setting in settings if ADAPTED or setting[0] != "lora"]


def rollout_batches() -> list[list[Trajectory]]:
    """Six of them. However their prompts are dealt, some ranks hold one kind of trajectories, or none."""
    draw = random.Random(0)

    def rows(group: int, kinds: str) -> list[Trajectory]:
        problem, prompt = Problem(f"p{group}", "a?", "a"), _tokens(draw, 1, 5)
        found = [_trajectory(draw, problem, prompt, group, sample) for sample in range(4)] if "r" in kinds else []
        if "d" in kinds:
            found.append(Trajectory(problem, prompt, (*_tokens(draw, 1, 6), 1), "", 1.0, demonstration=True))
        return [replace(each, group=group) for each in found]

    two, three = ("r", "d"), ("r", "d", "")
    return [
        [row for group in range(PROMPTS) for row in rows(group, "rd")],
        [row for group in range(PROMPTS) for row in rows(group, two[group % 2])],
        [row for group in range(PROMPTS) for row in rows(group, three[group % 3])],
        [],
        rows(0, "rd"),
        [*rows(0, "r"), *rows(1, "d")],
    ]


def _tokens(draw: random.Random, least: int, most: int) -> tuple[int, ...]:
    return tuple(draw.randrange(2, 7) for _ in range(draw.randint(least, most)))


def _trajectory(draw: random.Random, problem: Problem, prompt: tuple[int, ...], group: int, sample: int) -> Trajectory:
    reward = 0.0 if group % 4 == 1 else float(draw.random() < 0.5)  # some prompts are never solved
    return Trajectory(problem, prompt, (*_tokens(draw, 1, 6), 1), "", reward, demonstration=False, sample=sample)


def recipe_of(folder: Path, method: str, pieces: str, kind: str) -> upge.Recipe:
    """The tiny recipe with a setting."""
    updates = {"micro_batch_tokens": PIECES[pieces], "minibatches": 2, "epochs": 1 if method == "sft" else 2}
    config, dtype = (tiny.LLAMA | {"tie_word_embeddings": True}, "float32") if kind == TIED else (TYPES[kind], kind)
    model = {"dtype": dtype, "gradient_checkpointing": method == "grpo", **(LORA if method == "lora" else {})}
    train_ = {**updates, "prompts": PROMPTS}
    path = tiny.recipe(folder, config, estimator=METHODS[method], train=train_, model=model)
    return upge.load(path, ["critic={lr: 0.01, clip: 0.2}"] if method == "ppo" else [])


SCALED = tiny.LLAMA | {"model_type": "granite", "logits_scaling": 4.0}
"""A network whose logits aren't its head's own product."""


COMPOSITE = {
    "model_type": "gemma3",
    "text_config": {
        **{key: value for key, value in tiny.LLAMA.items() if key != "model_type"},
        **{"vocab_size": 7, "head_dim": 8, "num_key_value_heads": 1, "sliding_window": 8},
    },
    "vision_config": {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    | {"image_size": 8, "patch_size": 4},
    "mm_tokens_per_image": 4,
    "image_token_index": 7,
}
"""A network with a tower for images, which no text reaches."""
SPARE = tiny.GPT2 | {"add_cross_attention": True}
"""A network of text alone with layers that are never used."""


def built_recipe(folder: Path, config: Mapping[str, Any], kind: str = "float32") -> upge.Recipe:
    """HPT on another network."""
    recipe_of(folder, "hpt", "three", kind)
    path = folder / "recipe.yaml"
    blocks = json.loads(path.read_text())
    blocks["model"]["config"] = config
    path.write_text(json.dumps(blocks))
    return upge.load(path)


def learned(folder: Path, name: str, recipe: upge.Recipe, *, by_accelerate: bool = False) -> Learner:
    """Learn from this rank's share of each rollout batch, and leave the outcome."""
    AcceleratorState._reset_state()
    accelerator = open_ranks(recipe.train, recipe.model).accelerator
    if by_accelerate:  # what accelerate makes of its config where there are GPUs; its code then runs over gloo as well
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", reshard_after_forward=True
        )
    fsdp.settings(accelerator)
    learner = open_learner(recipe, load_policy(**recipe.policy_arguments()), accelerator)
    rank, world = learner.accelerator.process_index, learner.accelerator.num_processes
    metrics = [
        learn(learner, step, [each for each in batch if each.group % world == rank])
        for step, batch in enumerate(rollout_batches())
    ]
    leave(folder, name, learner, metrics)
    return learner


def asked(folder: Path) -> None:
    """Leave how many tokens each rank's model was asked about, where every other prompt teaches nothing."""
    found = {why: tokens_asked(folder, why) for why in ("equal rewards", "masked")}
    if os.environ["RANK"] == "0":
        (folder / "tokens.json").write_text(json.dumps(found))


def tokens_asked(folder: Path, why: str) -> list[int]:
    """How many tokens each rank's model was asked about, where every other prompt teaches nothing for this reason."""
    AcceleratorState._reset_state()
    recipe_of(own_folder(folder), "grpo", "all", "float32")
    recipe = upge.load(own_folder(folder) / "recipe.yaml", ["rollout.truncated=mask"])
    learner = open_learner(
        recipe, load_policy(**recipe.policy_arguments()), open_ranks(recipe.train, recipe.model).accelerator
    )
    rank, world = learner.accelerator.process_index, learner.accelerator.num_processes
    tokens, real = [0], learner.policy.log_probs

    def counted(sequences: Any, *given: Any, **named: Any) -> Any:
        tokens[0] += sum(len(prompt) + len(response) for prompt, response in sequences)
        return real(sequences, *given, **named)

    learner.policy.log_probs = counted  # type: ignore[method-assign]
    learn(learner, 0, [each for each in unlike(why) if each.group % world == rank])
    everybodys: list[int] = gather_object(tokens)
    return everybodys


def unlike(why: str) -> list[Trajectory]:
    """Rollouts of prompts of which every other one has signal: of two ranks the first would have them all."""
    draw = random.Random(0)
    found = []
    for group in range(PROMPTS):
        problem, prompt = Problem(f"p{group}", "a?", "a"), _tokens(draw, 3, 3)
        for sample in range(4):
            idle = group % 2 == 1
            reward = float(sample == 0 and not (idle and why == "equal rewards"))
            response, cut = (*_tokens(draw, 6, 6), 1), idle and why == "masked"
            found.append(
                Trajectory(problem, prompt, response, "", reward, False, truncated=cut, sample=sample, group=group)
            )
    return found


def own_folder(folder: Path) -> Path:
    """A folder that no other rank writes to."""
    own = folder / f"rank-{os.environ['RANK']}"
    own.mkdir(exist_ok=True)
    return own


def leave(folder: Path, name: str, learner: Learner, metrics: list[dict[str, float]]) -> None:
    """Write the parameters of all models in training, and the metrics."""
    first = learner.accelerator.is_main_process
    models = {part: optimization.model for part, optimization in learner.optimizations().items()}
    found = {part: shards.weights(model, keep=first) for part, model in models.items()}
    if first:
        flat = {f"{part}/{key}": x.clone() for part, weights in found.items() for key, x in weights.items()}
        save_file(flat, folder / f"{name}.safetensors")
        (folder / f"{name}.json").write_text(json.dumps(metrics))


@contextmanager
def environment(changes: Mapping[str, str]) -> Iterator[None]:
    """What accelerate's launcher would have set."""
    os.environ.update(changes)
    try:
        yield
    finally:
        for name in changes:
            del os.environ[name]


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


Run = Callable[..., None]


def runner(folder: Path) -> Run:
    """What runs the tiny recipe with a critic and a reference, into a folder of the name it is given."""
    terms = {"rl": {**RL, "advantage": "gae"}, "kl": KL, "sft": SFT}
    path = tiny.recipe(own_folder(folder), estimator={"terms": terms}, train={"steps": 4, "minibatches": 2})
    critic = "critic={lr: 0.01, clip: 0.2}"

    def run(name: str, *overrides: str, resume: bool = False) -> None:
        recipe = upge.load(path, [f"log.folder={folder / name}", critic, *overrides])
        train(recipe, resume=folder / name if resume else None, display=Display())

    return run


def replay(folder: Path) -> list[str]:
    """What has a run take the completions of the sampled one."""
    return [f"rollout.engine={{use: recorded, run: {folder / 'sampled'}}}", "eval.splits=[]"]


def runs(folder: Path) -> None:
    """A run that samples; with two processes also its replays, models whole and divided, one of them interrupted."""
    run = runner(folder)
    run("sampled")
    if int(os.environ["WORLD_SIZE"]) == 2:
        run("whole", *replay(folder))
        if ADAPTED:
            run("adapted-whole", *replay(folder), *ADAPTER)
        with environment(FSDP2):
            replayed(folder, run)
            exchanged(folder)  # whose recipe takes the place of this one


ADAPTER = ["model.lora={rank: 2, alpha: 4}"]


def replayed(folder: Path, run: Run, prefix: str = "") -> None:
    """Replays with models divided: through, and interrupted; the same with an adapter."""
    saving = [*replay(folder), "train.save_every=1"]
    run(f"{prefix}divided", *saving)
    run(f"{prefix}stopped", *saving, "train.steps=2")
    if os.environ["RANK"] == "0":
        shutil.copytree(folder / f"{prefix}stopped", folder / f"{prefix}half")
    run(f"{prefix}stopped", *saving, resume=True)
    if ADAPTED:
        run(f"{prefix}adapted", *replay(folder), *ADAPTER)
        run(f"{prefix}adapted-stopped", *saving, *ADAPTER, "train.steps=2")
        run(f"{prefix}adapted-stopped", *saving, *ADAPTER, resume=True)


def exchanged(folder: Path, name: str = "exchanged") -> None:
    """Keep what an engine in other processes would have read of a policy that is divided."""
    recipe = recipe_of(own_folder(folder), "sft", "all", "float32")
    policy = load_policy(**recipe.policy_arguments())
    learner = open_learner(recipe, policy, Accelerator(cpu=True))
    rank, world = learner.accelerator.process_index, learner.accelerator.num_processes
    with Exchange(folder / "exchange", rank=rank, world=world).copy(policy) as place:
        if rank == 0:
            shutil.copytree(place, folder / name)


def averages(folder: Path, name: str, method: str) -> None:
    """Leave the policy's moving average, and what models beside the policy say, after six rollout batches."""
    AcceleratorState._reset_state()
    recipe = recipe_of(own_folder(folder), method, "three", "float32")
    accelerator = open_ranks(recipe.train, recipe.model).accelerator
    learner = open_learner(recipe, load_policy(**recipe.policy_arguments()), accelerator)
    models, rank, world = learner.models, accelerator.process_index, accelerator.num_processes
    asked = {"average": models.open("policy", ema=Ema(decay=0.5, every=2)), "start": models.open(None)}
    asked["policy"] = models.open("policy")
    for step, batch in enumerate(rollout_batches()):
        learn(learner, step, [each for each in batch if each.group % world == rank])
    kept = [x.detach().clone() for x in learner.policy.model.parameters()]
    found = {who: model.log_probs([((2, 3), (4, 5, 1))], torch.ones(1)) for who, model in asked.items()}
    for model in asked.values():  # the first rank knows the answer, and the second doesn't
        model.log_probs([((2, 3 + rank), (4, 5, 1))], torch.ones(1))
    shards.settle(learner.policy.model)
    for before, x in zip(kept, learner.policy.model.parameters(), strict=True):
        assert torch.equal(shards.full(before), shards.full(x))
    state = models.state(keep=rank == 0)
    if rank == 0:
        save_file(found | state, folder / f"averages-{name}.safetensors")


def main(folder: Path, tier: str) -> None:
    """Do all of it, or a few of the settings."""
    torch.set_num_threads(1)
    whole, divided = (
        [setting for setting in possible(settings) if tier == "all" or setting in few]
        for settings, few in ((WHOLE, FEW), (DIVIDED, FEW_DIVIDED))
    )
    by_accelerate = [setting for setting in divided if setting[0] not in ("sft", "grpo")]

    def learn(prefix: str, setting: Setting, **options: bool) -> Learner:
        recipe = recipe_of(own_folder(folder), *setting)
        return learned(folder, prefix + "-".join(setting), recipe, **options)

    learned(folder, "hpt-composite", built_recipe(own_folder(folder), COMPOSITE))
    learned(folder, "spare-float64", built_recipe(own_folder(folder), SPARE, "float64"))
    for method in AVERAGED:
        averages(folder, method, method)
    for setting in whole:
        assert not learn("", setting).optimization.sharded
    if int(os.environ["WORLD_SIZE"]) == 2:
        asked(folder)
        scaled = built_recipe(own_folder(folder), SCALED)
        learned(folder, "scaled-float32", scaled)
        with environment(FSDP2):
            for method in AVERAGED:
                averages(folder, f"divided-{method}", method)
            learned(folder, "divided-scaled-float32", scaled)
            learned(folder, "divided-hpt-composite", built_recipe(own_folder(folder), COMPOSITE))
            for setting in divided:
                assert learn("divided-", setting).optimization.sharded
            for setting in by_accelerate:
                if tier == "all" or setting in FEW_BY_ACCELERATE:
                    learn("accelerate-", setting, by_accelerate=True)
    runs(folder)
