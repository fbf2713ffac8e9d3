"""What a run would need, told before it starts: parameters, memory, tokens and steps. Nothing is loaded or fetched.

`plan` works it out; `upge run RECIPE --dry-run` shows it.
"""

from upge.plan.plan import Plan, plan

__all__ = ["Plan", "plan"]
