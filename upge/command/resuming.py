"""Which recipe a command means that goes on with a run."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path


def named(recipe: str | None, overrides: Sequence[str], resume: Path | None) -> tuple[str, list[str]]:
    """The recipe's file and the overrides: those given, or, for a run to be resumed, the one in its folder.

    Raises InputError: no recipe is named; there is no such run folder.
    """
    from upge.errors import InputError

    if resume is None:
        if recipe is None:
            raise InputError("name a recipe (upge list recipes shows those that ship), or a run: --resume RUN")
        return recipe, list(overrides)
    if not os.path.isdir(resume):  # noqa: PTH112 (Path.is_dir raises for a name that is too long)
        raise InputError(f"--resume: there is no run folder '{resume}'")
    if recipe is not None and (Path(recipe).is_file() or "=" not in recipe):
        return recipe, list(overrides)
    own = resume / "recipe.yaml"
    if not own.is_file():
        raise InputError(f"--resume: '{resume}' is not the folder of a run: it has no recipe.yaml")
    here = f"log.folder={json.dumps(str(resume), ensure_ascii=False)}"  # where it is now, however it was called before
    return str(own), [here, *([] if recipe is None else [recipe]), *overrides]
