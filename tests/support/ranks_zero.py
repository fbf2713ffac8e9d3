"""What each of several processes does for test_zero.py: the rollout batches of ranks.py, and runs, under DeepSpeed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping
from itertools import product
from pathlib import Path

import torch
from support import ranks

import upge
from upge.distributed.accelerator import open_ranks
from upge.model.loading import load_policy
from upge.train.display import Display
from upge.train.learner import open_learner
from upge.train.metrics import StepMetrics
from upge.train.run import train

SETTINGS: list[ranks.Setting] = [
    *product(ranks.METHODS, ("three",), ("float32",)),
    *product(("hpt", "ppo", "lora"), ("three",), (ranks.TIED,)),
    *product(("hpt",), ("single", "all"), ("float32",)),
]
UNEVEN: list[ranks.Setting] = [("kl", "three", "float32"), ("ppo", "three", "float32")]
"""The settings that are done with 3 processes, which divide nothing here evenly."""
STAGES = ("1", "2", "3")
WAYS = ("whole", *STAGES)
"""Models whole on every rank, and what is divided at each stage of ZeRO."""


def way(folder: Path, name: str) -> Mapping[str, str]:
    """What accelerate's launcher would set."""
    if name == "whole":
        return {}
    file = folder / "zero.json"
    # Of parameters as small as these the norms' stay gathered, and the others do not.
    file.write_text(json.dumps({"zero_optimization": {"stage": "auto", "stage3_param_persistence_threshold": 20}}))
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": name,
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
    }


def named(name: str, *setting: str) -> str:
    """What the outcome of a setting is called."""
    return "-".join(setting if name == "whole" else (name, *setting))


def rounded(folder: Path, own: Path, name: str) -> None:
    """In bfloat16, of which the parameters know nothing."""
    ranks.recipe_of(own, "sft", "three", "float32")  # whose rows share no prompt, which would round otherwise
    ranks.learned(
        folder, named(name, "bfloat16", "float32"), upge.load(own / "recipe.yaml", ["train.precision=bfloat16"])
    )


def guarded(folder: Path, own: Path, name: str) -> None:
    """Gradients that are too large, and such as aren't finite on one rank, between ordinary ones."""
    ranks.recipe_of(own, "sft", "all", "float32")
    recipe = upge.load(own / "recipe.yaml", ["optimizer={lr: 0.01, clip_norm: 0.5, skip_above: 1000}"])
    learner = open_learner(
        recipe, load_policy(**recipe.policy_arguments()), open_ranks(recipe.train, recipe.model).accelerator
    )
    optimization, rank = learner.optimization, learner.accelerator.process_index

    def loss(factor: float) -> torch.Tensor:
        sequence, forward = ((2, 3), (4, 5 + rank)), optimization.forward
        logp, _ = learner.policy.log_probs([sequence], torch.ones(1), forward=forward)
        return -logp.sum() * factor

    metrics = []
    for step, factor in enumerate((1.0, 1e6, float("nan") if rank else 1.0, 2.0, float("inf"), 1.0)):
        tally = StepMetrics((), learner.sum)
        optimization.backward([factor, factor], loss, lambda: loss(0.0))
        optimization.step(step, tally)
        metrics.append(tally.reduced())
    ranks.leave(folder, named(name, "guarded", "float32"), learner, metrics)


def runs(folder: Path, own: Path) -> None:
    """A run that samples; its replays, models whole and divided, some interrupted, and one that changes its stage."""
    run = ranks.runner(folder)
    run("sampled")
    run("whole", *ranks.replay(folder))
    if ranks.ADAPTED:
        run("adapted-whole", *ranks.replay(folder), *ranks.ADAPTER)
    for stage in STAGES:
        with ranks.environment(way(own, stage)):
            ranks.replayed(folder, run, f"{stage}-")
    if os.environ["RANK"] == "0":
        shutil.copytree(folder / "2-half", folder / "changed")
    torch.distributed.barrier()
    with ranks.environment(way(own, "3")):
        recipe = upge.load(folder / "changed" / "recipe.yaml", [f"log.folder={folder / 'changed'}", "train.steps=4"])
        train(recipe, resume=folder / "changed", display=Display())
        ranks.exchanged(folder)


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    own, world = ranks.own_folder(folder), int(os.environ["WORLD_SIZE"])
    for name in STAGES if world > 1 else ("whole",):
        with ranks.environment(way(own, name)):
            for setting in ranks.possible(SETTINGS if world < 3 else UNEVEN):
                learner = ranks.learned(folder, named(name, *setting), ranks.recipe_of(own, *setting))
                assert learner.optimization.sharded == (name == "3")
                assert any(each.numel() == 0 for each in learner.policy.model.parameters()) == (name == "3")
    if world == 2:
        for name in WAYS:
            with ranks.environment(way(own, name)):
                ranks.learned(folder, named(name, "scaled", "float32"), ranks.built_recipe(own, ranks.SCALED))
                rounded(folder, own, name)
                guarded(folder, own, name)
        runs(folder, own)


if __name__ == "__main__":
    main()
