"""What each of several processes does for test_field_ranks.py: a run that reads every field that ships."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
from support import field_recipe
from support.ranks import FSDP2, environment, own_folder

import upge
from upge.train.display import Display
from upge.train.run import train


def main(folder: Path) -> None:
    """Run it with models whole; of two processes also divided, through and interrupted."""
    torch.set_num_threads(1)
    path = field_recipe.recipe(own_folder(folder))

    def run(name: str, *overrides: str, resume: bool = False) -> None:
        recipe = upge.load(path, [f"log.folder={folder / name}", *overrides], allow_code=True)
        train(recipe, resume=folder / name if resume else None, display=Display())

    run("whole")
    if int(os.environ["WORLD_SIZE"]) == 2:
        with environment(FSDP2):
            again = ["train.save_every=1", f"rollout.engine={{use: recorded, run: {folder / 'whole'}}}"]
            run("divided", *again)
            run("stopped", *again, "train.steps=2")
            run("stopped", *again, resume=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
