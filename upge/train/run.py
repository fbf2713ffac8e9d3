"""A run from its start to its end: everything that it needs is opened in order, trained, and closed in reverse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from upge.distributed import fsdp
from upge.distributed.accelerator import open_ranks
from upge.model.loading import load_policy
from upge.recipe.schema import Recipe
from upge.rollouts import preflight
from upge.rollouts.collector import open_collector
from upge.runs import failures, status
from upge.runs.folder import RunFolder
from upge.train import random_state, trackers
from upge.train.display import Display
from upge.train.learner import open_learner
from upge.train.resume import Start, choose, describe, evaluations, tidy
from upge.train.trainer import Trainer


def train(recipe: Recipe, *, resume: Path | None = None, again: bool = False, display: Display | None = None) -> Path:
    """Run a recipe; returns the run folder.

    Args:
        recipe: what to do. display: what shows it.
        resume: the folder of a run of this recipe, to go on with from its newest checkpoint.
        again: go on with the newest unfinished run of this recipe, if there is one.

    Raises:
        InputError: there is something wrong with what was given. RunError: the machine failed it. PartError: a part
        did. Stopped: SIGINT or SIGTERM asked for it.
    """
    with opened(recipe, resume, display or Display(), again=again) as trainer:
        trainer.run()
        return trainer.folder.path


@contextmanager
def opened(recipe: Recipe, resume: Path | None, display: Display, *, again: bool = False) -> Iterator[Trainer]:
    """Everything that a run needs, opened in order and closed in reverse."""
    preflight.require_packages(recipe)
    trackers.require(recipe.log.trackers)
    logging = {"log_with": list(recipe.log.trackers) or None, "project_dir": recipe.log.path(recipe.name)}
    ranks = open_ranks(recipe.train, recipe.model, **logging)
    accelerator, start = ranks.accelerator, ranks.broadcast(lambda: choose(recipe, resume, again=again))
    folder = RunFolder(start.folder, writes=accelerator.is_main_process)
    display.shown = accelerator.is_main_process
    display.tell([*start.messages, *fsdp.settings(accelerator)])
    with ExitStack() as stack:
        if folder.writes:
            stack.callback(status.Lock(folder.path).release)
        stack.enter_context(failures.accounted(recipe, folder))
        random_state.seed(recipe.train.seed, accelerator.process_index)
        policy = load_policy(**recipe.policy_arguments())
        learner = open_learner(recipe, policy, accelerator, log_tokens=recipe.log.completions)
        collector = stack.enter_context(open_collector(recipe, policy, folder.path, ranks, learner.models))
        learner.fields = collector.fields
        preflight.refuse_untrainable(recipe, collector.data, collector.sampler)
        trainer = Trainer(collector, learner, folder, display)
        trainer.rehearse()
        display.tell(policy.notes)
        trainer.track = stack.enter_context(trackers.tracking(recipe, accelerator, folder.path))
        stack.enter_context(display)
        _begin(trainer, start)
        yield trainer


def _begin(trainer: Trainer, start: Start) -> None:
    """Put the trainer where the run begins: at its start, or where the checkpoint has left it."""
    folder, found = trainer.folder, start.found
    if found is not None:
        tidy(folder, found)
        if found.place is not None and found.progress is not None:
            trainer.take_up(found.place, found.progress)
            trainer.evaluations = evaluations(folder)
    describe(folder, trainer.recipe, start, trainer.policy)
    trainer.note("running")
