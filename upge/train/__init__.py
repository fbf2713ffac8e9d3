"""A run: problems → trajectories → credit → count → weigh → step, and the folder that it leaves.

The package can be called, since `upge.train(recipe)` and the modules below it share a name.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any


class _Train(ModuleType):
    """This package, which runs a recipe when it is called."""

    def __call__(self, recipe: Any, **options: Any) -> Path:
        """As `upge.train.run.train`."""
        from upge.train.run import train

        return train(recipe, **options)


sys.modules[__name__].__class__ = _Train
