"""How a training step's time and memory grow with tokens, response length, rollouts per prompt and vocabulary.

A small piece of work grows in one of these at a time, and all sizes are timed in turns. A step is all that follows the
rollouts; the learning rate is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from upge.bench.timing import SECONDS, Table, Timing, in_turns, machine
from upge.bench.work import SMOLLM2, Work
from upge.errors import InputError
from upge.plan.fake_model import Held
from upge.report.charts import COLOURS, Chart, curve
from upge.report.figure import write_figure
from upge.train.learner import Learner
from upge.train.trainer import learn

FACTORS = (1, 2, 4, 8)
HEAD = 64
"""The width of SmolLM2's attention heads."""

GROWTH: Mapping[str, Callable[[Work, int], Work]] = {
    "prompts": lambda work, factor: replace(work, prompts=factor * work.prompts),
    "response tokens": lambda work, factor: replace(
        work, shortest=factor * work.shortest, longest=factor * work.longest
    ),
    "rollouts of a prompt": lambda work, factor: replace(work, samples=factor * work.samples),
    "vocabulary": lambda work, factor: replace(
        work, shape={**work.shape, "vocab_size": factor * work.shape["vocab_size"]}
    ),
}


@dataclass(frozen=True)
class Point:
    """A size that is measured. Attributes: grows: what has grown. factor: how many times."""

    grows: str
    factor: int
    work: Work

    @property
    def name(self) -> str:
        """One and the same for the work that hasn't grown yet."""
        return "base" if self.factor == 1 else f"{self.grows} × {self.factor}"

    @property
    def size(self) -> int:
        """The size of the dimension that grows."""
        work = self.work
        sizes = {"prompts": work.prompts, "response tokens": work.longest, "rollouts of a prompt": work.samples}
        return sizes.get(self.grows, int(work.shape["vocab_size"]))


def points(work: Work) -> list[Point]:
    """The work in all its sizes."""
    return [Point(grows, factor, grow(work, factor)) for grows, grow in GROWTH.items() for factor in FACTORS]


def shape(hidden: int, layers: int, vocabulary: int) -> dict[str, Any]:
    """SmolLM2's configuration in another size. Raises InputError where `hidden` isn't made of whole heads."""
    if hidden % HEAD:
        raise InputError(f"--hidden: {hidden} is no multiple of {HEAD}, the width of an attention head")
    return SMOLLM2 | {
        "hidden_size": hidden,
        "intermediate_size": hidden * 8 // 3,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // HEAD,
        "num_key_value_heads": 1,
        "vocab_size": vocabulary,
    }


def measure(work: Work, *, repeats: int = 5, plot: Path | None = None) -> Table:
    """Seconds of a step, and bytes that it holds at most; `plot`: an SVG file for the curves of both.

    Raises: InputError: the file can't be written.
    """
    if plot is not None and not plot.absolute().parent.is_dir():
        raise InputError(f"--plot: there is no folder {plot.parent}")
    measured = points(work)
    steps = _steps(measured)
    timings = in_turns({name: step.run for name, step in steps.items()}, repeats=repeats)
    held = {name: step.held() for name, step in steps.items()}
    if plot is not None:
        _draw(plot, measured, {name: timing.median for name, timing in timings.items()}, held)
    return _table(work, measured, timings, held)


@dataclass(frozen=True)
class Step:
    """A training step over the work."""

    learner: Learner
    work: Work

    def run(self) -> None:
        """From the scored rollouts to the optimizer's step."""
        learn(self.learner, 0, self.work.trajectories)

    def held(self) -> int:
        """Bytes of tensors that a step holds at once, at most, beside the weights and the optimizer's state."""
        optimization = self.learner.optimization
        states = optimization.strategy.adamw.state.values()
        state = [tensor for values in states for tensor in values.values() if isinstance(tensor, Tensor)]
        with Held([*optimization.model.parameters(), *state]) as held:
            self.run()
        return int(held.peak)


def _steps(measured: Sequence[Point]) -> dict[str, Step]:
    """By the point's name; a model and its optimizer for every vocabulary."""
    learners: dict[int, Learner] = {}
    steps = {}
    for point in measured:
        rows = point.work.shape["vocab_size"]
        if rows not in learners:
            learners[rows] = point.work.learner(point.work.recipe())
        steps[point.name] = Step(learners[rows], point.work)
    return steps


def _draw(path: Path, measured: Sequence[Point], seconds: Mapping[str, float], held: Mapping[str, int]) -> None:
    try:
        write_figure([_growth("time", measured, seconds), _growth("memory", measured, held)], path)
    except InputError as error:
        raise InputError(f"--plot: {error}") from error


def _growth(title: str, measured: Sequence[Point], values: Mapping[str, float]) -> Chart:
    """How many times as much, by how many times as large; on both axes equal steps are doublings."""
    curves = {
        grows: [(point.factor, values[point.name] / values["base"]) for point in measured if point.grows == grows]
        for grows in GROWTH
    }
    series = [curve(name, its, index) for index, (name, its) in enumerate(curves.items())]
    even = curve("in proportion", [(factor, factor) for factor in FACTORS], COLOURS - 1)
    return Chart(title, [*series, even], note="times as much", across="times as large", log_x=True, log_y=True)


def _table(work: Work, measured: Sequence[Point], timings: Mapping[str, Timing], held: Mapping[str, int]) -> Table:
    rows = [_row(point, timings[point.name], timings["base"], held[point.name], held["base"]) for point in measured]
    facts: dict[str, Any] = {grows: [] for grows in GROWTH}
    for point in measured:
        values = {"seconds": timings[point.name].seconds, "held_bytes": held[point.name]}
        facts[point.grows].append({"size": point.size, "tokens": point.work.tokens, **values})
    return Table(
        title=f"A training step on {work.prompts} × {work.samples} rollouts and what they grow to",
        columns=["grows", "to", "tokens", SECONDS, "÷ first", "held, MiB", "÷ first"],
        rows=rows,
        notes=[
            f"Prompts of about {work.prompt_tokens} tokens, responses of {work.shortest} to {work.longest} at first; "
            f"{work.shape['num_hidden_layers']} layers, {work.shape['hidden_size']} wide.",
            "Tokens: prompts once a rollout. Held: at most, beside weights and optimizer state; the gradient is in it.",
            machine(),
        ],
        facts=facts,
    )


def _row(point: Point, timing: Timing, first: Timing, held: int, held_first: int) -> list[str]:
    ratio = timing.ratio(first).median
    memory = [f"{held / 2**20:.1f}", f"{held / held_first:.2f}"]
    return [point.grows, str(point.size), str(point.work.tokens), f"{timing:.3f}", f"{ratio:.2f}", *memory]
