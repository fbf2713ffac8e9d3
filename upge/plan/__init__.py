"""Estimates of a run's parameters, memory, tokens and steps, without loading or downloading anything.

`plan` works it out; `upge run RECIPE --dry-run` shows it.
"""

from upge.plan.plan import Plan, plan

__all__ = ["Plan", "plan"]
