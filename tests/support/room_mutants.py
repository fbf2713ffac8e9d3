"""Wrong versions of the rooms beside the estimator's, each with the test of its room that must notice it.

Those of parts and of the estimator are in `mutants`, where one list of checks kills them all.
"""

from __future__ import annotations

import importlib
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.mutants import Mutant

TESTS = Path(__file__).parents[1]

WITHOUT = {
    "cli": "prints what the others count",
    "distributed": "moves numbers between processes; test_processes.py compares whole runs",
    "recipe": "reads text",
    "runs": "reads and writes folders",
    "testing": "finds wrong parts; tests/wrong_parts holds those that it must find",
}
"""The rooms that have no formula of their own, and what they do."""


@dataclass(frozen=True)
class Killer:
    """A test: its file below tests/, its function, and one case of those that it is tried with."""

    file: str
    function: str
    arguments: tuple[Any, ...] = ()

    def load(self) -> Any:
        """The function, from the module that pytest collects too."""
        path = TESTS / self.file
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        return getattr(importlib.import_module(path.stem), self.function)

    def __call__(self) -> None:
        self.load()(*self.arguments)


def killed_by(file: str, function: str, *arguments: Any) -> Killer:
    return Killer(f"{file}.py", f"test_{function}", arguments)


def _row(name: str, module: str, old: str, new: str, killer: Killer) -> tuple[Mutant, Killer]:
    return Mutant(name, f"upge.{module}", old, new), killer


ESTIMATES, SEEDS, DRAWINGS = "evaluate/test_estimates", "sweep/test_seeds", "report/test_report_drawings"
STUDY, BENCH, HEALTH = "study/test_study", "bench/test_bench", "train/test_health"

ROOM_MUTANTS = [
    _row(
        "pass@k puts samples back",
        "evaluate.scores",
        "log1p(-k / (n - i))",
        "log1p(-k / n)",
        killed_by(ESTIMATES, "pass_at_k_is_the_share_of_subsets_that_hold_a_right_one", 5),
    ),
    _row(
        "every answer wins the vote",
        "evaluate.scores",
        "if count == most}",
        "if count <= most}",
        killed_by(ESTIMATES, "majority", ["8", "7", "8"], [False, True, False], 0.0),
    ),
    _row(
        "one tail has the share of both",
        "evaluate.scores",
        "(1 - LEVEL) / 2",
        "(1 - LEVEL)",
        killed_by(ESTIMATES, "the_interval_is_the_normal_one_for_many_problems"),
    ),
    _row(
        "as many degrees of freedom as seeds",
        "sweep.scores",
        "quantile(n - 1)",
        "quantile(n)",
        killed_by(SEEDS, "an_interval_by_hand"),
    ),
    _row(
        "Student's sum has a term too many",
        "sweep.scores",
        "range(odd, freedom - 1, 2)",
        "range(odd, freedom + 1, 2)",
        killed_by(SEEDS, "the_quantiles_are_those_of_the_tables", 4, 2.7764),
    ),
    _row(
        "the first minus the second",
        "sweep.scores",
        "second[seed] - first[seed]",
        "first[seed] - second[seed]",
        killed_by(SEEDS, "a_pair_is_surer_than_two_intervals_where_seeds_share_their_luck"),
    ),
    _row(
        "areas below stairs",
        "sweep.scores",
        "(b - a) * (u + v) / 2",
        "(b - a) * u",
        killed_by(SEEDS, "areas_by_hand"),
    ),
    _row(
        "the objective is a sum over prompts",
        "study.exact",
        "world.reward).sum(1).mean()",
        "world.reward).sum(1).sum()",
        killed_by(STUDY, "the_exact_gradient_is_the_objectives_slope", "table", 0.0),
    ),
    _row(
        "the variance around 0",
        "study.study",
        "chance @ (g - mean).square()",
        "chance @ g.square()",
        killed_by(STUDY, "two_tokens_by_hand"),
    ),
    _row(
        "a moving mean looks ahead only",
        "report.charts",
        "max(0, i - reach) : i",
        "i : i",
        killed_by(DRAWINGS, "means_and_moving_means"),
    ),
    _row(
        "prompts counted once a column",
        "report.allocation",
        "counts[column, label] += count",
        "counts[column, label] += 1 - count",
        killed_by(DRAWINGS, "the_picture_counts_every_prompt"),
    ),
    _row(
        "the divergence from the new policy",
        "train.metrics",
        "log_ratio(logp, batch.old_logp[sampled])",
        "log_ratio(batch.old_logp[sampled], logp)",
        killed_by(
            "train/test_health_metrics",
            "divergences_are_exact_where_every_token_is_seen_as_often_as_it_is_likely",
        ),
    ),
    _row(
        "the entropy of a response, not of a token",
        "train.metrics",
        "len(each.rollout_logp))",
        "1)",
        killed_by("train/test_health_metrics", "entropy_and_loops_are_of_rollouts_alone"),
    ),
    _row(
        "the best term's clip fraction",
        "train.health_checks",
        "max(",
        "min(",
        killed_by(HEALTH, "the_worst_term_is_the_clip_fraction_and_no_other_mask_is"),
    ),
    _row(
        "prompts go to the busiest rank",
        "rollouts.batching",
        "(held[rank], rank != load.rank, rank)",
        "(-held[rank], rank != load.rank, rank)",
        killed_by("distributed/test_balancing", "prompts_without_signal_on_one_rank_make_room_for_others"),
    ),
    _row(
        "a micro-batch without its padding",
        "rollouts.batching",
        "max(self.width, other.width)",
        "min(self.width, other.width)",
        killed_by("train/test_metric_names", "a_prompt_stays_in_one_micro_batch_where_it_fits"),
    ),
    _row(
        "a temperature that multiplies",
        "model.head",
        "tile.div_(self.temperature[rows])",
        "tile.mul_(self.temperature[rows])",
        killed_by("model/test_log_probs", "log_probs_of_a_tied_model"),
    ),
    _row(
        "the entropy without ln Σ exp",
        "model.head",
        "spread - self.weighted / self.total]",
        "-self.weighted / self.total]",
        killed_by("model/test_head", "the_benchmarks_ways_have_the_same_gradients", True),
    ),
    _row(
        "the gradient stops at certain tokens",
        "model.log_probs",
        "log_prob - log_prob.detach().clamp(min=0)",
        "log_prob.clamp(max=0)",
        killed_by("model/test_log_probs", "rounding_above_zero_is_taken_off_and_the_gradient_stays"),
    ),
    _row(
        "apart where they differ least",
        "describe.similarity",
        "lambda trial: _difference(",
        "lambda trial: -_difference(",
        killed_by("describe/test_similarity", "distances_are_taken_where_they_are_greatest"),
    ),
    _row(
        "optimizer steps of one epoch",
        "plan.memory",
        "train.minibatches * train.epochs",
        "train.epochs",
        killed_by("plan/test_plan", "the_work_of_a_rollout_batch"),
    ),
    _row(
        "the slowest has the highest rate",
        "bench.timing",
        "amount / spread.high, amount / spread.low",
        "amount / spread.low, amount / spread.high",
        killed_by(BENCH, "a_ratio_has_the_spread_of_its_rounds_and_a_rate_that_of_its_seconds"),
    ),
    _row(
        "a distance in units of our own gradient",
        "bench.work",
        "x in theirs.values()",
        "x in ours.values()",
        killed_by(BENCH, "gradients_are_told_apart_by_all_their_parameters"),
    ),
]
