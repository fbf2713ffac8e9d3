"""Wrong versions of parts and of the machine, made by textual replacement, to show that the tests can fail.

A mutant swaps the code of the functions that the replacement changes, in place, so that whatever the checks build runs
the wrong version. The replacement adds and removes no line.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """`old` → `new` in the source of `module`: what would be wrong, in a word, is its name."""

    name: str
    module: str
    old: str
    new: str

    @contextmanager
    def alive(self) -> Iterator[None]:
        """Within this context the mutation is real."""
        module = importlib.import_module(self.module)
        source = inspect.getsource(module)
        assert source.count(self.old) == 1, f"{self.module} holds {source.count(self.old)} times: {self.old}"
        wrong = _functions(compile(source.replace(self.old, self.new), str(module.__file__), "exec"))
        right = _functions(compile(source, str(module.__file__), "exec"))
        changed = [_function(module, name) for name, code in right.items() if wrong[name] != code]
        assert changed, f"{self.name} changes no function"
        kept = [function.__code__ for function in changed]
        for function in changed:
            function.__code__ = wrong[function.__qualname__]
        try:
            yield
        finally:
            for function, code in zip(changed, kept, strict=True):
                function.__code__ = code


def _functions(code: CodeType) -> dict[str, CodeType]:
    """Functions and methods by qualified name, but for those that functions define inside."""
    found = {}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            is_class = not constant.co_flags & inspect.CO_OPTIMIZED
            found |= _functions(constant) if is_class else {constant.co_qualname: constant}
    return found


def _function(module: Any, name: str) -> FunctionType:
    """The function behind a property, a cached property, or a decorator."""
    found: Any = module
    for part in name.split("."):
        found = inspect.getattr_static(found, part)
    found = getattr(found, "fget", None) or getattr(found, "func", None) or getattr(found, "__func__", None) or found
    return inspect.unwrap(found)


def parts(*rows: tuple[str, str, str, str]) -> list[Mutant]:
    return [Mutant(name, f"upge_parts.{module}", old, new) for name, module, old, new in rows]


def machine(*rows: tuple[str, str, str, str]) -> list[Mutant]:
    return [Mutant(name, f"upge.{module}", old, new) for name, module, old, new in rows]


MUTANTS = [
    *parts(
        ("positives are negatives", "selections.sign", "b.advantage > 0 if", "b.advantage < 0 if"),
        ("the uncertain are the certain", "selections.top_entropy", "b.entropy >= b.", "b.entropy < b."),
        ("the wrong are correct", "selections.correct", "> self.above", "<= self.above"),
        ("clip drops its upper boundary", "masks.clip", "(ratio > 1 + self.high)", "(ratio >= 1 + self.high)"),
        ("clip drops its lower boundary", "masks.clip", "(ratio < 1 - self.low)", "(ratio <= 1 - self.low)"),
        ("clip looks the wrong way above", "masks.clip", "(b.advantage > 0)", "(b.advantage < 0)"),
        ("clip looks the wrong way below", "masks.clip", "(b.advantage < 0)", "(b.advantage > 0)"),
        ("clip without the sign above", "masks.clip", "(b.advantage > 0) & ", ""),
        ("clip without the sign below", "masks.clip", "(b.advantage < 0) & ", ""),
        ("clip with low for high", "masks.clip", "1 + self.high)", "1 + self.low)"),
        ("clip bounds ratios, not offsets", "masks.clip", "1 - self.low", "self.low"),
        ("clip ignores against", "masks.clip", "b.ratio_to(self.against)", "b.ratio"),
        ("clip masks everything beyond", "masks.clip", "0.0, 1.0)", "0.0, 0.9)"),
        ("biased standard deviation", "groups", "- float(unbiased)", "- 0.0"),
        ("unbiased is ignored", "groups", "float(unbiased)", "1.0"),
        ("no epsilon", "advantages.group_norm", " + self.epsilon", ""),
        ("epsilon inside the root", "advantages.group_norm", "(std + self.epsilon)", "(std**2 + self.epsilon).sqrt()"),
        ("variance for deviation", "groups", "freedom).sqrt() * scale", "freedom) * scale**2"),
        (
            "group_norm counts demonstrations",
            "advantages.group_norm",
            "members(b, self.over, reward)",
            "(b.rollout | True)",
        ),
        ("the spread counts demonstrations", "groups", ").where(group, 0.0)", ")"),
        ("group_mean counts demonstrations", "groups", "own = b.rollout if", "own = (b.rollout | True) if"),
        ("the mean is a sum", "groups", " / count.clamp(min=1)", ""),
        ("the mean of the batch", "groups", "b.to_trajectories(mean)", "x.mean()"),
        (
            "the wrong group's mean",
            "groups",
            "b.to_trajectories(mean)",
            "b.to_trajectories(mean.flip(0))",
        ),
        ("no baseline", "groups", "centred = x - ", "centred = x - 0 * "),
        ("rounding makes an advantage", "groups", "(count < 2) | alike", "(count < 2)"),
        ("wrong counts as right", "advantages.signed", "reward > self", "reward >= self"),
        ("signed leaves wrong alone", "advantages.signed", "1.0, -1.0", "1.0, 0.0"),
        ("one is a half", "advantages.one", "torch.ones(()", "0.5 * torch.ones(()"),
        ("old is current", "denominators.old", "b.old_logp", "b.old_logp * 0 + b._batch.logp.detach()"),
        ("one is current", "denominators.one", "torch.zeros(()", "-torch.ones(()"),
        ("constant without N", "reductions.constant", "trajectories * self.length", "self.length + 0 * trajectories"),
        ("constant without L", "reductions.constant", "trajectories * self.length", "trajectories"),
        ("sequence_mean without lengths", "reductions.sequence_mean", " * b.to_tokens(b.length)", ""),
        ("sequence_mean counts the active", "reductions.sequence_mean", "self.counted(b)", "b.active"),
        ("sequence_mean counts prompts", "reductions.sequence_mean", "self.counted(b)", "b.per_prompt(b.rows) > 0"),
        ("sequence_sum counts every row", "reductions.sequence_sum", "self.counted(b)", "b.rows | True"),
        ("sequence_sum counts tokens", "reductions.sequence_sum", "self.counted(b)", "self.counted(b) * b.length"),
        ("token_mean over all rows", "reductions.token_mean", "self.counted(b) * ", ""),
        ("token_mean counts trajectories", "reductions.token_mean", " * b.length", ""),
        ("the gate opens at its threshold", "switches.success_rate", "b.step) > rounding", "b.step) > -rounding"),
        ("the gate sees demonstrations", "groups", ".where(b.rollout, 0.0)", ""),
        ("the gate takes the sum for the mean", "groups", " / b.per_prompt(b.rollout).clamp(min=1)", ""),
        (
            "the gate never closes",
            "switches.success_rate",
            "self.otherwise: 1 - above",
            "self.otherwise: above * 0 + 1",
        ),
        ("always forgets the weights", "switches.always", "ones * weight", "ones"),
        ("dual_clip drops its boundary", "masks.dual_clip", "> self.ratio_max", ">= self.ratio_max"),
        ("dual_clip forgets the sign", "masks.dual_clip", "(b.advantage < 0) & ", ""),
        ("dual_clip ends the wrong push", "masks.dual_clip", "b.advantage < 0", "b.advantage > 0"),
        ("dual_clip forgets clip", "masks.dual_clip", "super().__call__(b)", "0 * super().__call__(b) + 1"),
        ("cap is a lower bound", "masks.cap", "clamp(max=1)", "clamp(min=1)"),
        ("cap never bites", "masks.cap", ".clamp(max=1)", ".clamp(min=1, max=1)"),
        ("cap looks at the weight twice", "masks.cap", "self.ratio_max / b", "self.ratio_max / b.ratio / b"),
        ("cis_mask caps at low", "masks.cis_mask", "1 + self.high", "1 + self.low"),
        ("cis_mask does not mask", "masks.cis_mask", "super().__call__(b) * ", "0 * super().__call__(b) + "),
        ("cis_mask does not cap", "masks.cis_mask", ".clamp(max=1)", ".clamp(min=1, max=1)"),
        ("shaping without its square", "masks.shaping", ") ** 2", ")"),
        ("shaping without gamma above", "masks.shaping", "self.gamma / (", "1 / ("),
        ("shaping takes the log-prob", "masks.shaping", "b.logp.exp()", "b.logp.abs()"),
        ("entropy_weight with the wrong sign", "masks.entropy_weight", "self.sign * entropy", "-self.sign * entropy"),
        ("entropy_weight without its scale", "masks.entropy_weight", "self.scale * torch", "torch"),
        ("entropy_weight weighs everything", "masks.entropy_weight", 'self.where == "all"', "self.where"),
        ("entropy_weight weighs the wrong", "masks.entropy_weight", "b.advantage > 0 if", "b.advantage < 0 if"),
        ("entropy_weight drops the others", "masks.entropy_weight", "weight, 1.0)", "weight, 0.0)"),
        (
            "importance upside down",
            "masks.truncated_importance",
            "b.old_logp - b.rollout",
            "b.rollout_logp - b.rollout",
        ),
        ("importance without its cap", "masks.truncated_importance", ".clamp(max=self.cap)", ".clamp(min=0)"),
        ("importance of every level", "masks.truncated_importance", 'self.level == "sequence"', "False"),
        ("rollout is old", "denominators.rollout", "return b.rollout_logp", "return b._batch.old_logp"),
        ("sequence is always a product", "denominators.sequence", 'self.of == "mean"', "False"),
        ("sequence is never a product", "denominators.sequence", 'self.of == "mean"', "True"),
        ("sequence upside down", "denominators.sequence", "b.logp - b.to_tokens", "b.logp + b.to_tokens"),
        ("leave_one_out leaves nobody out", "advantages.leave_one_out", "n / (n - 1)", "n / n"),
        ("leave_one_out for outsiders", "advantages.leave_one_out", "among.where(group, 1.0)", "among"),
        ("whitening forgets the mean", "advantages.whitening", "centred = x - mean", "centred = x - 0 * mean"),
        ("whitening is biased", "advantages.whitening", "count - float(unbiased)", "count"),
        ("whitening over all rows", "advantages.whitening", "b.rows.to(x)", "(b.rows | True).to(x)"),
        (
            "whitening per trajectory",
            "advantages.whitening",
            "counted = b.to_tokens(b.rows.to(x))",
            "counted = b.to_tokens(b.rows.to(x) / b.length)",
        ),
        (
            "whitening of this rank",
            "advantages.whitening",
            "b.total(x.where(counted > 0, 0.0).sum())",
            "x.where(counted > 0, 0.0).sum()",
        ),
        ("whitening without epsilon", "advantages.whitening", "(variance + added)", "(variance)"),
        ("whitening without the root", "advantages.whitening", "(variance + added).sqrt()", "(variance + added)"),
        ("batch_norm forgets the shaping to come", "advantages.batch_norm", " + b.to_go(shaping)", ""),
        (
            "batch_norm counts the shaping twice",
            "advantages.batch_norm",
            " - b.per_trajectory(shaping)",
            "",
        ),
        ("batch_norm without its baseline", "advantages.batch_norm", 'self.baseline == "group_mean"', "False"),
        ("every reward is shaped", "advantages.batch_norm", 'self.of == "reward"', "True"),
        (
            "whitening spreads what others lack",
            "advantages.whitening",
            "b.total(x.where(counted > 0, 0.0)",
            "b.total((x * counted)",
        ),
        ("a group spreads what others lack", "groups", "x.where(group, 0.0)", "x * group"),
        ("a group spreads what a member lacks", "groups", "own & ~x.isnan()", "own"),
        ("an unknown reward is average", "groups", " & ~x.isnan(), 0.0", ", 0.0"),
        ("an unknown reward is wrong", "advantages.signed", "torch.where(reward.isnan(), reward, sign)", "sign"),
        (
            "an unknown success is a failure",
            "switches.success_rate",
            "rate.isnan(), rate",
            "rate.isnan() & False, rate",
        ),
        ("the field is another's", "denominators.field", "return b.field(self.of)", "return 0.5 * b.field(self.of)"),
        ("the unknown is known", "selections.known", "return ~(", "return ("),
        ("the last turn is the batch's", "selections.turn", "b.to_tokens(last) + 1", "last.max() + 1"),
        ("turns from the end begin at nothing", "selections.turn", "b.to_tokens(last) + 1", "b.to_tokens(last)"),
        ("other turns are these", "selections.turn", "return ~chosen if", "return chosen if"),
        ("the right are those of the score", "selections.correct", 'self.of == "reward"', 'self.of != ""'),
        ("gae forgets lambda", "advantages.gae", "self.gamma * self.lambda_", "self.gamma"),
        ("gae forgets gamma", "advantages.gae", "self.gamma * b.following", "b.following"),
        ("gae rewards every token", "advantages.gae", "b.at_last(score)", "b.to_tokens(score)"),
        ("gae looks at its own value", "advantages.gae", "b.following(b.value)", "b.value"),
        ("gae forgets the critic", "advantages.gae", " - b.value\n", "\n"),
        ("gae never whitens", "advantages.gae", "if self.whiten else", "if False else"),
        ("k2 for k3", "advantages.kl", 'self.estimator == "k2"', "True"),
        ("k3 upside down", "advantages.kl", "torch.exp(-log_ratio)", "torch.exp(log_ratio)"),
        ("kl rewards divergence", "advantages.kl", "return -at(self.coefficient", "return at(self.coefficient"),
        ("prompt_mean counts trajectories", "reductions.prompt_mean", "self.counted(b) * b.length", "self.counted(b)"),
        ("prompt_mean forgets the prompts", "reductions.prompt_mean", "(prompts * b", "(b"),
        ("prompt_mean counts rows", "reductions.prompt_mean", "b.per_prompt(self.counted(b)) > 0", "self.counted(b)"),
        ("linear imitates success", "switches.linear", "self.failure: 1 - rate", "self.failure: rate"),
        ("phases start a step late", "switches.phases", "step < self.steps", "step <= self.steps"),
        ("phases never change", "switches.phases", "in self.wants(b.step)", "in self.first"),
        ("a schedule stands still", "switches.scheduled", "at(weight, b.step)", "at(weight, 0)"),
        (
            "informative counts demonstrations",
            "switches.informative",
            'members(b, "rollouts", reward)',
            'members(b, "all", reward)',
        ),
        ("informative keeps what is alike", "switches.informative", "> 0", ">= 0"),
        ("overlong charges from zero", "shapings.overlong", "(b.length - self.soft_limit)", "b.length"),
        ("overlong rewards length", "shapings.overlong", "-self.scale * excess", "self.scale * excess"),
        ("overlong charges demonstrations", "shapings.overlong", "where(b.rollout,", "where(b.rollout | True,"),
        ("overlong charges every token", "shapings.overlong", "b.at_last(", "b.to_tokens("),
        ("overlong without an end", "shapings.overlong", "clamp(0, 1)", "clamp(min=0)"),
        ("kl_in_reward pays for divergence", "shapings.kl_in_reward", "-at(self.coefficient", "at(self.coefficient"),
        (
            "kl_in_reward charges demonstrations",
            "shapings.kl_in_reward",
            "b.to_tokens(b.rollout)",
            "b.to_tokens(b.rollout | True)",
        ),
    ),
    *machine(
        (
            "what is to come leaves its trajectory",
            "estimator.view",
            "table[:, column] += decay",
            "table[:, column] += 2 * decay",
        ),
        (
            "the next token is another's",
            "estimator.view",
            "torch.where(self._batch.last, 0, x.roll(-1))",
            "x.roll(-1)",
        ),
        ("the next token is the one before", "estimator.view", "x.roll(-1)", "x.roll(1)"),
        (
            "idle is any, not all",
            "estimator.estimator",
            "idle[batch.prompt[weighed]] = False",
            "idle[batch.prompt[~weighed]] = True",
        ),
        (
            "the mean of this rank",
            "estimator.view",
            "return reduce(x.sum(dtype=torch.float64)).to",
            "return x.sum(dtype=torch.float64).to",
        ),
        ("fields carry gradient", "estimator.view", "return tensor.detach()", "return tensor"),
        ("needs are not enforced", "estimator.view", "if declared not in self._reads:", "if False:"),
        ("the ratio upside down", "estimator.view", "(logp - denominator)", "(denominator - logp)"),
        ("the ratio is not clamped", "estimator.view", "clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)", "clamp(None, 1e9)"),
        (
            "groups are neighbours",
            "estimator.batch",
            "torch.unique(self.group,",
            "torch.unique_consecutive(self.group,",
        ),
        (
            "on-policy is not the old policy",
            "estimator.view",
            'else "logp", declared',
            'else "rollout_logp", declared',
        ),
        (
            "the quantile of this rank",
            "estimator.order_statistics",
            "counts = total(counts.index_add_",
            "counts = (counts.index_add_",
        ),
        ("a quantile between no neighbours", "estimator.order_statistics", "position.ceil()", "position.floor()"),
        (
            "negative numbers upside down",
            "estimator.order_statistics",
            "torch.where(bits < 0, bits ^",
            "torch.where(bits < 0, bits &",
        ),
        ("the top with every tie", "estimator.order_statistics", "(equal & (ties <= last) & (missing > 0))", "equal"),
        ("a share is rounded up", "estimator.view", "torch.floor(p * count + 1e-9)", "torch.ceil(p * count + 1e-9)"),
        (
            "noise by the place in the batch",
            "estimator.batch",
            "self.trajectory_key[self.trajectory]",
            "self.trajectory",
        ),
        (
            "select makes keys anew",
            "estimator.batch",
            'picked["key"] = self.trajectory_key[rows]',
            'picked["key"] = None',
        ),
        ("two parts draw alike", "estimator.noise", "key ^ signed(key_of(place))", "key"),
        ("a wide part sees a micro-batch", "estimator.factors", "if wide and self._reduce is None:", "if False:"),
        (
            "a wide part of this rank",
            "estimator.factors",
            "self._reduce if wide else None",
            "(lambda x: x) if wide else None",
        ),
        (
            "what isn't selected has weight",
            "estimator.estimator",
            "torch.where(own.selected, coefficient, 0)",
            "coefficient",
        ),
        (
            "a selection changes no count",
            "estimator.estimator",
            "if all(term.selected is None",
            "if True or all(term.selected is None",
        ),
        (
            "a row without a selected token counts",
            "estimator.estimator",
            "rows & there, active & there",
            "rows, active",
        ),
        (
            "the last selection wins",
            "estimator.factors",
            "chosen if caller.selected is None else caller.selected & chosen",
            "chosen",
        ),
        (
            "kept rows forget selections",
            "estimator.credit",
            "self.active if self.selected is None else",
            "self.active if True else",
        ),
        (
            "a weight that is a part is 1",
            "estimator.estimator",
            "ones * viewer.weight(",
            "ones * 1 + 0 * viewer.weight(",
        ),
        ("select does not renumber", "estimator.batch", "torch.cumsum(rows, 0) - 1", "torch.arange(rows.numel())"),
        ("active is all", "estimator.view", "self.rows if active is None else active", "self.rows"),
        ("count active is count all", "part", 'if self.count == "all" else b.active', "if self.count else b.active"),
        ("the coefficient is dropped", "estimator.estimator", "weight = coefficient * share", "weight = share"),
        ("the advantage is dropped", "estimator.estimator", "mask * ratio * advantage", "mask * ratio"),
        ("the mask is dropped", "estimator.estimator", ".to(batch.dtype) * mask * ratio", ".to(batch.dtype) * ratio"),
        ("the ratio is dropped", "estimator.estimator", "* mask * ratio * adv", "* mask * adv"),
        ("idle tokens keep their NaN", "estimator.estimator", "if not _finite(weight):", "if False:"),
        (
            "0 times infinity",
            "estimator.estimator",
            "torch.where(weight != 0, weight * direction, 0)",
            "(weight * direction)",
        ),
        ("ascent, not descent", "estimator.estimator", "loss = loss - _dot", "loss = loss + _dot"),
        ("the last term wins", "estimator.estimator", "loss = loss - _dot", "loss = -_dot"),
        (
            "entropy pushes on likelihood",
            "estimator.estimator",
            'batch.logp if term.direction == "likelihood" else batch.entropy',
            "batch.logp",
        ),
        (
            "a term takes every row",
            "estimator.estimator",
            "term_credit(torch.where(rows, coefficients[name], 0))",
            "term_credit(coefficients[name])",
        ),
        (
            "demonstrations for rollouts",
            "estimator.estimator",
            "return ~batch.demonstration",
            "return batch.demonstration",
        ),
        ("the term's weight is dropped", "estimator.estimator", "ones * at(term.weight, step)", "ones"),
        (
            "a mask replaces the one before",
            "estimator.factors",
            "mask * self._number(place, part)",
            "self._number(place, part)",
        ),
        ("the last switch wins", "estimator.estimator", "coefficients[name] * spread", "spread"),
        ("count_with is ignored", "estimator.estimator", "return self.terms[name].count_with or name", "return name"),
        (
            "counts are of this rank",
            "estimator.estimator",
            "rows=rows, active=active, reduce=reduce, guards=guards)",
            "rows=rows, active=active, guards=guards)",
        ),
        (
            "what matters has no advantage",
            "estimator.credit",
            "weighty = weighty & rows_of(tokens, batch)",
            "weighty = weighty & ~rows_of(tokens, batch)",
        ),
        ("what matters is dropped", "estimator.credit", "rows = rows | weighty", "rows = weighty"),
    ),
]
