"""A training step of ours against one of TRL's GRPOTrainer: same model, rollouts and rewards, same gradient.

TRL's hooks for rollouts and rewards play back what we hand them; padding, advantages, micro-batches, loss and backward
pass are its own code. Gradients are compared first, since time only means something where these agree. A step is all
that follows the rollouts, the optimizer's step included, which on both sides moves nothing: the learning rate is 0.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import re
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from upge.bench.timing import SECONDS, Table, Timing, in_turns, machine, seconds
from upge.bench.work import Gradients, Work, distance, of_learner, of_step
from upge.errors import InputError
from upge.model.loading import load_policy
from upge.train.learner import Learner
from upge.train.trainer import learn

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak(action: Callable[[], Any]) -> int:
    """Bytes of resident memory that `action` takes at most, above what this process has before it.

    Meant for a process of its own: what an earlier action has freed, and the allocator has kept, would count as had.

    Raises: InputError: the system keeps no such account; Linux does.
    """
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what is free goes back to the system, or it would hide new use
        _RESET.write_text("5")  # from now on the high-water mark counts anew: proc(5)
    except (OSError, AttributeError) as error:
        raise InputError(f"peak memory can't be measured on this system: {error}") from error
    before = _read("VmRSS")
    action()
    return _read("VmHWM") - before


def _read(name: str) -> int:
    match = re.search(rf"^{name}:\s*(\d+) kB", _STATUS.read_text(encoding="utf-8"), re.MULTILINE)
    assert match is not None, f"proc(5) promises {name}"
    return int(match[1]) * 1024


RECIPE, LOSS_TYPE = "bench/trl", "grpo"
"""The recipe, and the setting of TRL's that is its equal: the mean over each response's tokens, then over responses."""

BATCH_SIZES = (4, 8, 16, 32)
"""Trajectories of a micro-batch of TRL's: those that are tried."""


OURS = {"upge": False, "upge, recomputing": True}
"""Our ways, and whether layers are computed again in the backward pass (gradient checkpointing). TRL's doesn't."""


def measure(work: Work, *, repeats: int = 5, batch_size: int | None = None) -> Table:
    """Tokens per second and peak memory of both.

    Args: batch_size: of TRL's micro-batches; None: the fastest of `BATCH_SIZES`.

    Raises: InputError: TRL isn't installed, or can't divide the trajectories.
    """
    try:
        import trl
    except ImportError as error:
        raise InputError(f"TRL can't be imported ({error}): pip install 'upge[peers]'") from error
    best = _fastest(work, batch_sizes(work, BATCH_SIZES if batch_size is None else (batch_size,)))
    with Theirs(work, best) as theirs:
        learner = work.learner(work.recipe(RECIPE))
        ways = {name: Ours(learner, work, recompute) for name, recompute in OURS.items()}
        apart = distance(ways["upge"].gradients(), theirs.gradients())
        steps = {name: way.step for name, way in ways.items()} | {"TRL": theirs.step}
        timings = in_turns(steps, repeats=repeats)
    memory = {name: _alone(_peak_of_ours, work, recompute) for name, recompute in OURS.items()}
    memory["TRL"] = _alone(_peak_of_theirs, work, best)
    return _table(work, timings, memory, apart, best, trl.__version__)


def batch_sizes(work: Work, sizes: Sequence[int] = BATCH_SIZES) -> list[int]:
    """Those that divide the work. Raises InputError where none does."""
    count = work.prompts * work.samples
    divisors = [size for size in sizes if count % size == 0]
    if not divisors:
        tried = ", ".join(map(str, sizes))
        raise InputError(f"--prompts times --samples: {count} trajectories, which none of TRL's {tried} divides")
    return divisors


def _fastest(work: Work, sizes: Sequence[int]) -> int:
    """The batch size at which TRL takes least, one at a time: each has a model and an optimizer of its own."""
    if len(sizes) == 1:
        return sizes[0]
    took = {}
    for size in sizes:
        with Theirs(work, size) as theirs:
            took[size] = in_turns({"TRL": theirs.step}, repeats=1)["TRL"].median
    return min(sizes, key=lambda size: took[size])


class Ours:
    """A recipe's training step over the work."""

    def __init__(self, learner: Learner, work: Work, recompute: bool) -> None:
        self.learner, self.work, self.recompute = learner, work, recompute

    def step(self) -> None:
        """From the scored rollouts to the optimizer's step."""
        self.learner.policy.recompute = self.recompute
        learn(self.learner, 0, self.work.trajectories)

    def gradients(self) -> Gradients:
        """What the optimizer is given."""
        return of_learner(self.learner, self.step)


class Theirs:
    """GRPOTrainer's training step over the work, in micro-batches of `size` trajectories."""

    def __init__(self, work: Work, size: int) -> None:
        self.work, self.size = work, size
        self.pieces = len(work.trajectories) // size
        self.folder = tempfile.TemporaryDirectory()
        self.trainer = self._trainer(Path(self.folder.name))

    def __enter__(self) -> Theirs:
        return self

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()

    def step(self) -> None:
        """From the scored rollouts to the optimizer's step."""
        trainer = self.trainer
        trainer._step, trainer._buffered_inputs = 0, None
        for _ in range(self.pieces):
            trainer.training_step(trainer.model, [{"prompt": "?"}] * len(self.work.trajectories), None)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    def gradients(self) -> Gradients:
        """What the optimizer is given."""
        return of_step(self.step, self.trainer.optimizer, self.trainer.model)

    def _trainer(self, folder: Path) -> Any:
        from datasets import Dataset
        from trl import GRPOTrainer

        policy = load_policy(**self.work.recipe(RECIPE).policy_arguments())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            trainer = GRPOTrainer(
                policy.model,
                reward_funcs=[lambda completion_ids, **_: [trajectory.reward for trajectory in self.work.trajectories]],
                args=self._settings(folder),
                train_dataset=Dataset.from_dict({"prompt": ["?"] * self.work.prompts}),
                processing_class=policy.tokenizer,
                rollout_func=self._roll_out,
            )
        trainer.create_optimizer()
        # The training loop, which isn't run, would set these.
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = self.pieces
        return trainer

    def _settings(self, folder: Path) -> Any:
        from trl import GRPOConfig

        return GRPOConfig(
            str(folder),
            per_device_train_batch_size=self.size,
            gradient_accumulation_steps=self.pieces,
            num_generations=self.work.samples,
            max_completion_length=self.work.longest,
            loss_type=LOSS_TYPE,
            learning_rate=0.0,
            max_grad_norm=0.0,
            **{"use_cpu": True, "bf16": False, "gradient_checkpointing": False},
            **{"report_to": "none", "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True},
        )

    def _roll_out(self, prompts: list[Any], trainer: Any) -> dict[str, Any]:
        del prompts, trainer
        trajectories = self.work.trajectories
        return {
            "prompt_ids": [list(trajectory.prompt) for trajectory in trajectories],
            "completion_ids": [list(trajectory.response) for trajectory in trajectories],
            "logprobs": None,
        }


def _alone(function: Callable[..., int], *arguments: Any) -> int:
    """The result of a function in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _peak_of_ours(work: Work, recompute: bool) -> int:
    learner = work.learner(work.recipe(RECIPE))
    return _second(Ours(learner, work, recompute).step, learner.policy.model)


def _peak_of_theirs(work: Work, size: int) -> int:
    with Theirs(work, size) as theirs:
        return _second(theirs.step, theirs.trainer.model)


def _second(step: Callable[[], None], model: torch.nn.Module) -> int:
    """Bytes of a second step above weights, optimizer state, which the first step makes, and gradients."""
    step()
    return peak(step) - sum(p.numel() * p.element_size() for p in model.parameters())


def _table(
    work: Work, timings: dict[str, Timing], memory: dict[str, int], apart: float, size: int, version: str
) -> Table:
    speedup = {name: timings["TRL"].ratio(timings[name]) for name in OURS}
    share = {name: memory[name] / memory["TRL"] for name in OURS}
    return Table(
        title=f"A training step on {work.prompts} × {work.samples} rollouts, {work.signal:.0%} of them with signal",
        columns=["", SECONDS, "tokens/s", "peak memory, MiB"],
        rows=[
            *(_row(name, work, timing, memory[name]) for name, timing in timings.items()),
            *([f"{name} : TRL", "", f"{speedup[name]:.2f}", f"{share[name]:.2f}"] for name in OURS),
        ],
        notes=[
            f"TRL {version} at batch size {size}. Tokens: {work.tokens}, prompts once a rollout.",
            f"Gradients: ‖upge − TRL‖ / ‖TRL‖ = {apart:.1e}.",
            "Peak memory is above what any step needs: weights, gradients and optimizer state.",
            machine(),
        ],
        facts={
            "speedup": {name: ratio.median for name, ratio in speedup.items()},
            "memory": share,
            "gradient_distance": apart,
            "trl_batch_size": size,
            "tokens": work.tokens,
            "seconds": seconds(timings),
            "peak_bytes": memory,
        },
    )


def _row(name: str, work: Work, timing: Timing, memory: int) -> list[str]:
    return [name, f"{timing:.2f}", f"{work.tokens / timing.median:.0f}", f"{memory / 2**20:.0f}"]
