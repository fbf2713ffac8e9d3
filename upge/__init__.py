"""upge: invent post-training algorithms for language models by writing YAML.

    ∇J = Σ_terms Σ_t  weight · s(prompt) · n_t · mask_t · (π_θ/π_ref)_t · Â_t · ∇log π_θ(t)

Every factor is a part; a recipe names parts, the machine multiplies them, and a test proves what they multiply to.
Names are imported when they are first used, so that `import upge` alone costs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upge.asking import PartError as PartError
    from upge.asking import error_text as error_text
    from upge.batch import Batch as Batch
    from upge.batch import View as View
    from upge.code import Code as Code
    from upge.code import function_of as function_of
    from upge.credit import Credit as Credit
    from upge.discovery import register as register
    from upge.errors import InputError as InputError
    from upge.errors import Terminated as Terminated
    from upge.estimator import Estimator as Estimator
    from upge.estimator import Term as Term
    from upge.files import parse_json as parse_json
    from upge.files import read_text as read_text
    from upge.files import regular_file as regular_file
    from upge.flow import Completion as Completion
    from upge.flow import Context as Context
    from upge.flow import DataSession as DataSession
    from upge.flow import EngineSession as EngineSession
    from upge.flow import Message as Message
    from upge.flow import Problem as Problem
    from upge.flow import Request as Request
    from upge.flow import Response as Response
    from upge.flow import RewardSession as RewardSession
    from upge.flow import Sampling as Sampling
    from upge.flow import Trajectory as Trajectory
    from upge.parts import Advantage as Advantage
    from upge.parts import AReward as AReward
    from upge.parts import Data as Data
    from upge.parts import Denominator as Denominator
    from upge.parts import Engine as Engine
    from upge.parts import Follows as Follows
    from upge.parts import Mask as Mask
    from upge.parts import Part as Part
    from upge.parts import Reduction as Reduction
    from upge.parts import Reward as Reward
    from upge.parts import Shaping as Shaping
    from upge.parts import SomeData as SomeData
    from upge.parts import Switch as Switch
    from upge.policy import ModelError as ModelError
    from upge.policy import Policy as Policy
    from upge.policy import load_policy as load_policy
    from upge.recipe import Recipe as Recipe
    from upge.recipe import RecipeError as RecipeError
    from upge.recipe import load as load
    from upge.run.guarding import opened as opened
    from upge.schedule import Number as Number
    from upge.schedule import Schedule as Schedule
    from upge.schedule import Within as Within
    from upge.schedule import at as at
    from upge.score import as_list as as_list
    from upge.score import as_score as as_score

__version__ = "0.1.0"

_HOMES = {
    "upge.asking": ("PartError", "error_text"),
    "upge.batch": ("Batch", "View"),
    "upge.code": ("Code", "function_of"),
    "upge.credit": ("Credit",),
    "upge.discovery": ("register",),
    "upge.errors": ("InputError", "Terminated"),
    "upge.estimator": ("Estimator", "Term"),
    "upge.files": ("parse_json", "read_text", "regular_file"),
    "upge.flow": (
        "Completion",
        "Context",
        "DataSession",
        "EngineSession",
        "Message",
        "Problem",
        "Request",
        "Response",
        "RewardSession",
        "Sampling",
        "Trajectory",
    ),
    "upge.parts": (
        "AReward",
        "Advantage",
        "Data",
        "Denominator",
        "Engine",
        "Follows",
        "Mask",
        "Part",
        "Reduction",
        "Reward",
        "Shaping",
        "SomeData",
        "Switch",
    ),
    "upge.policy": ("ModelError", "Policy", "load_policy"),
    "upge.run.guarding": ("opened",),
    "upge.recipe": ("Recipe", "RecipeError", "load"),
    "upge.score": ("as_list", "as_score"),
    "upge.schedule": ("Number", "Schedule", "Within", "at"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'upge' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
