"""Health checks: one that fails for long enough warns, and ends the run where the recipe asks for it; docs/health.md.

They read a step's metrics, which are the same on all ranks, and what they count is saved with the run. A check that a
step says nothing of (the clip fraction of imitation, say) stays as it was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from upge.errors import InputError
from upge.estimator import Estimator
from upge.recipe import Recipe
from upge.recipe.health import Health
from upge.records.metrics import is_count, is_number
from upge.run.signs import SIGNS, Reading, Seen


def clipping(estimator: Estimator) -> tuple[str, ...]:
    """The terms all of whose masks are trust regions. What another mask leaves out, it leaves out on purpose."""
    terms = estimator.terms.items()
    return tuple(name for name, term in terms if term.mask and all(mask.trust_region for mask in term.mask))


@dataclass
class Watch:
    """Looks at one rollout batch after another.

    Attributes:
        settings: the recipe's block `health`. clipping, first, teacher: see `Seen`.
        failed: for each check, how many rollout batches in a row have failed it. warned: the checks that have warned
            and are not over. last: each check's newest reading.
    """

    settings: Health
    clipping: tuple[str, ...] = ()
    failed: dict[str, int] = field(default_factory=dict)
    warned: list[str] = field(default_factory=list)
    first: dict[str, float] = field(default_factory=dict)
    last: dict[str, Reading] = field(default_factory=dict)
    teacher: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> Watch:
        """The watch that a recipe asks for."""
        teacher = recipe.reference.path not in (None, recipe.model.path)
        return cls(recipe.health, clipping(recipe.estimator), teacher=teacher)

    def look(self, step: int, metrics: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
        """Look at the metrics of the next rollout batch.

        Returns: `health/<check>` for each check that they say something of, 1 while it warns, else 0; and what to tell.
        """
        marks, told, seen = {}, [], Seen(metrics, self.clipping, self.first, self.teacher)
        for name, sign in SIGNS.items():
            reading = None if name in self.settings.off else sign.read(getattr(self.settings, name), seen)
            if reading is not None:
                self.last[name] = reading
                self.failed[name] = self.failed.get(name, 0) + 1 if reading.failing else 0
                marks[f"health/{name}"] = float(self._ill(name))
                told += self._news(name, step)
        return marks, told

    def _ill(self, name: str) -> bool:
        patience: int = getattr(self.settings, name).patience
        return self.failed.get(name, 0) >= patience

    def _news(self, name: str, step: int) -> list[str]:
        """A warning where a check begins to, a line where that is over."""
        said = self.last[name].said
        if self._ill(name) == (name in self.warned):
            return []
        if name in self.warned:
            self.warned.remove(name)
            return [f"health: {name} is over at step {step}: {said}"]
        self.warned.append(name)
        sign, batches = SIGNS[name], self.failed[name]
        row = f", {batches} rollout batches in a row" if batches > 1 else ""
        return [f"health: {name} at step {step}{row}: {said}", f"  {sign.meaning}", f"  to try: {sign.remedy}"]

    def stops(self) -> list[str]:
        """Each check that now ends the run, with its number."""
        ending = [name for name in self.settings.stop if name in self.last and self._ill(name)]
        return [f"{name}: {self.last[name].said}" for name in ending]

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"failed": self.failed, "warned": self.warned, "first": self.first}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up what a checkpoint has kept, of checks that are still on; older checkpoints have kept nothing.

        Raises InputError where it is no such state.
        """
        failed, warned, first = state.get("failed", {}), state.get("warned", []), state.get("first", {})
        counted = isinstance(failed, dict) and all(map(is_count, failed.values()))
        measured = isinstance(first, dict) and all(map(is_number, first.values()))
        if not (counted and measured and isinstance(warned, list)):
            raise InputError("the checkpoint's progress.json doesn't say how the health checks stand")
        off = self.settings.off
        self.failed = {name: count for name, count in failed.items() if name not in off}
        self.warned = [name for name in warned if name not in off]
        self.first = dict(first)
