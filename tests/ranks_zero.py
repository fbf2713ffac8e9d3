"""What each of several processes does for test_zero.py: the rollout batches of ranks.py, and runs, under DeepSpeed."""

from __future__ import annotations

import json
import os
import sys
from itertools import product
from pathlib import Path

import ranks
import torch

SETTINGS = list(product(ranks.METHODS, ("three",), ("float32", ranks.TIED)))
STAGES = ("1", "2", "3")


def zero(folder: Path, stage: str) -> dict[str, str]:
    """What accelerate's launcher would set for a stage."""
    file = folder / "zero.json"
    # Else parameters as small as these stay whole.
    file.write_text(json.dumps({"zero_optimization": {"stage": "auto", "stage3_param_persistence_threshold": 0}}))
    return {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": stage,
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file),
    }


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    own = ranks.own_folder(folder)
    for stage in STAGES if int(os.environ["WORLD_SIZE"]) > 1 else ("whole",):
        for setting in SETTINGS:
            with ranks.environment({} if stage == "whole" else zero(own, stage)):
                ranks.learned(folder, "-".join((stage, *setting)), setting)


if __name__ == "__main__":
    main()
