"""The training loop, to be read from the top down.

problems → engine → trajectories → reward → credit → count → weigh → optimizer → engine …
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from upge.errors import RunError
from upge.estimator.guards import Guards
from upge.evaluate.measurement import evaluate
from upge.rollouts import preflight
from upge.rollouts.collector import Collector
from upge.rollouts.rollout_batch import RolloutBatch
from upge.runs import status
from upge.runs.folder import RunFolder
from upge.runs.signals import Stop, Stopped
from upge.train import cautions, checkpoint
from upge.train.checkpoint import Progress
from upge.train.display import Display
from upge.train.health_checks import HealthMonitor
from upge.train.learner import Learner
from upge.train.metrics import StepMetrics
from upge.types import Trajectory


def learn(learner: Learner, step: int, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Make the optimizer steps of one rollout batch; returns its metrics, summed over ranks.

    Counts are taken over all micro-batches and ranks of an optimizer step before its first backward pass. So neither
    packing nor the number of processes changes the gradient.
    """
    estimator, metrics, guards = learner.recipe.estimator, learner.metrics(), Guards()
    # Once a rollout batch: every factor that needs no forward pass of π_θ.
    rollouts = learner.balanced(step, trajectories)
    rollouts = learner.with_fields_for_credit(step, rollouts)
    credit = estimator.credit(rollouts.batch, step, state=learner.state, reduce=learner.sum, guards=guards)
    learner.state = credit.state
    rollouts = replace(rollouts, credit=credit)
    metrics.rollouts(rollouts, estimator)
    if learner.token_log is not None:
        learner.token_log.begin(rollouts)
    rollouts = learner.with_fields_for_updates(step, learner.without_truncated(rollouts))
    # Once an optimizer step: count over all of it, drop what cannot matter, then weigh and backward piece by piece.
    for update, portion in enumerate(learner.updates(rollouts)):
        if learner.critic is not None:
            learner.critic.learn(step, portion, metrics, learner.recipe.train.micro_batch_tokens, learner.sum)
        portion = learner.with_fields_for_count(update, portion)
        credit = estimator.count(portion.batch, portion.settled, reduce=learner.sum, guards=guards)
        counted = replace(portion, credit=credit)
        alive = counted.select(estimator.alive(counted.batch, counted.settled))
        metrics.add("rows/alive", len(alive.trajectories))
        loss = partial(_loss, learner, alive, metrics, guards, stale=update > 0)
        pieces = learner.micro_batches(alive.trajectories, scope=estimator.scope)
        signal = learner.optimization.backward(pieces, loss, learner.idle)
        guards.read()
        if signal:
            learner.optimization.step(step, metrics)
            learner.models.moved()
        else:
            metrics.add("updates/without_signal", 1 / learner.accelerator.num_processes)
    guards.read()
    for name, count in learner.fields.missing().items():
        metrics.add(f"fields/{name}/missing", count)
    learner.learned(step)
    return metrics.reduced() | {"lr": learner.optimization.rate(step)}


def _loss(
    learner: Learner, rollouts: RolloutBatch, metrics: StepMetrics, guards: Guards, rows: list[int], *, stale: bool
) -> Tensor:
    """The loss of one micro-batch, −Σ sg(weight)·log π_θ."""
    micro = learner.with_log_probs(rollouts.select(rollouts.rows(rows)))
    weighed = learner.recipe.estimator.weigh(micro.batch, micro.settled, stale=stale, guards=guards)
    metrics.weighed(micro.batch, weighed)
    if learner.token_log is not None:
        learner.token_log.weighed(micro, weighed)
    return weighed.loss


@dataclass
class Trainer:
    """A run in progress: everything is open, `run` does it.

    Attributes:
        track: sends a line of metrics to trackers.
        done: rollout batches done. measured: whether the measurement due after them is made.
        taken: problems taken from the data. resumed: whether this process takes up another's work.
        saved: after how many rollout batches the newest checkpoint was written. stop: whether a signal asks for an end.
        watch: what looks for signs of the run going wrong. said: what this process has warned of besides.
    """

    collector: Collector
    learner: Learner
    folder: RunFolder
    display: Display
    track: Callable[[Mapping[str, Any]], None] = lambda line: None
    done: int = 0
    measured: bool = False
    taken: int = 0
    resumed: bool = False
    saved: int | None = None
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    stop: Stop = field(default_factory=Stop)
    watch: HealthMonitor = field(init=False)
    said: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.recipe, self.policy = self.learner.recipe, self.learner.policy
        self.watch = HealthMonitor.of(self.recipe)

    def run(self) -> None:
        """Every rollout batch, with measurements and checkpoints between them; the trained model at the end.

        Once the step in hand is done and saved, raises Stopped where a signal asks for it, and RunError where a health
        check does.
        """
        self.display.begin(self.recipe, self.folder.path, self.done)
        self.display.tell(cautions.before(self.recipe, self.done))
        with self.stop.listening():
            if not self.resumed:
                self.check()
            self.measure_where_due()
            while self.done < self.recipe.train.steps:
                self.stop_where_asked()
                self.step(self.done)
                self.stop_where_asked()
                self.stop_where_unwell()
                self.measure_where_due()
                self.save_where_due()
            self.stop_where_asked()
            self.finish()

    def check(self) -> None:
        """Look at the problems to come, and tell what is wrong. Raises InputError where `train.check` refuses it."""
        settings = self.recipe.train
        if settings.check_problems == 0:
            return
        report = preflight.look(self.recipe, self.collector.data, self.collector.sampler)
        self.log({"phase": "check", "step": 0} | report.metrics())
        if settings.check == "refuse":
            report.refuse()
        self.display.found([*report.sentences(), *report.notes()])

    def step(self, step: int) -> None:
        """One rollout batch: collect it, learn from it, log."""
        began = time.perf_counter()
        batch = self.collector.collect(step, self.taken, self.learner.state, partial(self.keep_all, "train", step))
        self.taken = batch.taken
        collected = time.perf_counter()
        metrics = learn(self.learner, step, batch.trajectories) | batch.counts
        self.collector.sampler.engine.sync(self.policy)
        ended = time.perf_counter()
        marks, warnings = self.watch.look(step, metrics)
        line = {"phase": "train", "step": step} | dict(sorted((metrics | marks).items()))
        seconds = {"collect": collected - began, "learn": ended - collected}
        self.log(line)
        self.keep_credit(step)
        self.folder.timings({"phase": "train", "step": step, **seconds})
        self.display.step(line, seconds)
        self.display.tell([*warnings, *cautions.during(self.recipe, line, self.said)])
        self.done, self.measured = step + 1, False
        self.note("running")

    def measure_where_due(self) -> None:
        """Evaluate the policy at the start, at the end, and every so often as the recipe says."""
        every = self.recipe.eval.every
        due = self.done in (0, self.recipe.train.steps) or (every and self.done % every == 0)
        if due and not self.measured and self.recipe.eval.splits:
            self.measure(self.done)
        self.measured = True

    def measure(self, done: int) -> None:
        """Evaluate the policy after `done` rollout batches."""
        began = time.perf_counter()
        collector = self.collector
        if collector.evaluator is not collector.sampler:
            collector.evaluator.engine.sync(self.policy)
        metrics, responses = evaluate(self.recipe, collector.data, collector.evaluator, done, collector.ranks)
        for split, sampled in responses.items():
            self.keep(f"eval/{split}", done, sampled)
        line = {"phase": "eval", "step": done} | metrics
        self.evaluations.append(line)
        self.log(line)
        self.folder.timings({"phase": "eval", "step": done, "seconds": time.perf_counter() - began})
        self.display.evaluation(line)

    def save_where_due(self) -> None:
        """Write a checkpoint every so often as the recipe says."""
        every = self.recipe.train.save_every
        if every and self.done % every == 0:
            self.save()

    def save(self) -> None:
        """Write a checkpoint of what is done; the logs it counts on are on the disk before it."""
        random = checkpoint.generators(self.collector.ranks)
        logged = self.folder.logged_to() if self.folder.writes else {}
        state, health = self.collector.data.state(), self.watch.state()
        progress = Progress(self.done, self.measured, self.taken, state, logged, random, health)
        keep, writes = self.recipe.train.keep, self.folder.writes
        checkpoint.save(self.folder.path, self.learner, progress, keep=keep, writes=writes)
        self.saved = self.done
        self.learner.accelerator.wait_for_everyone()

    def rehearse(self) -> None:
        """Do once what `finish` will do, before there is anything to lose."""
        checkpoint.rehearse(self.folder.path, self.learner, merge=self.merges, writes=self.folder.writes)

    def take_up(self, place: Path, progress: Progress) -> None:
        """Restore a checkpoint; the random generators come last, since opening may have drawn from them."""
        checkpoint.restore(place, self.learner)
        self.done, self.measured, self.taken = progress.step, progress.measured, progress.taken
        self.resumed, self.saved = True, progress.step
        self.collector.data.restore(progress.data)
        self.watch.restore(progress.health)
        self.collector.sampler.engine.sync(self.policy)
        checkpoint.restore_generators(progress, self.collector.ranks)

    def stop_where_asked(self) -> None:
        """Save and raise Stopped if this process, or another rank's, has had a signal."""
        if number := self.stop.agreed(self.learner.accelerator):
            if self.saved != self.done:
                self.save()
            raise Stopped(f"stopped after step {self.done} of {self.recipe.train.steps}", number)

    def stop_where_unwell(self) -> None:
        """Save and raise RunError if a check that `health.stop` names fails, and there is more to do."""
        reasons = self.watch.stops()
        if not reasons or self.done == self.recipe.train.steps:
            return
        if self.saved != self.done:
            self.save()
        raise RunError(
            f"stopped after step {self.done} of {self.recipe.train.steps}, as health.stop requires: "
            f"{'; '.join(reasons)}\n"
            "to continue anyway, add health.stop=[] to the command below"
        )

    @property
    def merges(self) -> bool:
        """Whether the run leaves a whole model."""
        lora = self.recipe.model.lora
        return lora is None or lora.save == "merged"

    def finish(self) -> None:
        """Save the trained model and the summary."""
        checkpoint.leave(self.folder.path, self.learner, merge=self.merges, writes=self.folder.writes)
        summary = {"name": self.recipe.name, "steps": self.recipe.train.steps, "evaluations": self.evaluations}
        self.folder.summary(summary)
        self.note("finished")
        self.display.end(self.evaluations, self.folder.path)
        if self.policy.lacking and self.merges:
            self.display.tell([self.policy.lacking])
        self.learner.accelerator.wait_for_everyone()

    def note(self, state: Literal["running", "finished"]) -> None:
        """Keep in the run folder how far the run is."""
        if self.folder.writes:
            status.note(self.folder.path, state, self.done)

    def log(self, line: dict[str, Any]) -> None:
        """Keep a line of metrics, and send it to the recipe's trackers."""
        self.folder.metrics(line)
        self.track(line)

    def keep(self, stream: str, step: int, trajectories: list[Trajectory]) -> None:
        """Log completions."""
        if self.recipe.log.completions:
            self.folder.completions(stream, step, trajectories, logp="rollout_logp" in self.learner.needs)

    def keep_all(self, stream: str, step: int, mine: list[Trajectory]) -> None:
        """Log all ranks' completions; all of them call it."""
        self.keep(stream, step, self.collector.ranks.all_gather(mine))

    def keep_credit(self, step: int) -> None:
        """Log what a few trajectories were weighed with."""
        if self.learner.token_log is not None:
            lines = self.collector.ranks.all_gather(self.learner.token_log.lines(step))
            self.folder.credit(sorted(lines, key=lambda line: int(line["group"])))
