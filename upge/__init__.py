"""upge: invent post-training algorithms for language models by writing YAML.

    ∇J = Σ_terms Σ_t  weight · s(prompt) · n_t · mask_t · (π_θ/π_ref)_t · Â_t · ∇log π_θ(t)

Every factor is a part; a recipe names parts, the machine multiplies them, and a test proves what they multiply to.
Names are imported when they are first used, so that `import upge` alone costs neither torch nor transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from upge.code import Code as Code
    from upge.code import function_of as function_of
    from upge.ema import Ema as Ema
    from upge.errors import InputError as InputError
    from upge.errors import Terminated as Terminated
    from upge.estimator.batch import Batch as Batch
    from upge.estimator.credit import Credit as Credit
    from upge.estimator.estimator import Estimator as Estimator
    from upge.estimator.part_errors import PartError as PartError
    from upge.estimator.part_errors import error_text as error_text
    from upge.estimator.term import Term as Term
    from upge.estimator.view import View as View
    from upge.field_names import FieldName as FieldName
    from upge.field_names import PromptField as PromptField
    from upge.field_names import TokenField as TokenField
    from upge.field_names import TrajectoryField as TrajectoryField
    from upge.files import parse_json as parse_json
    from upge.files import read_text as read_text
    from upge.files import regular_file as regular_file
    from upge.model import AskedModel as AskedModel
    from upge.model import ModelError as ModelError
    from upge.model import Models as Models
    from upge.model import Policy as Policy
    from upge.model import load_policy as load_policy
    from upge.model_paths import ModelPath as ModelPath
    from upge.part import Advantage as Advantage
    from upge.part import AnAdvantage as AnAdvantage
    from upge.part import AnEngine as AnEngine
    from upge.part import AReward as AReward
    from upge.part import BatchField as BatchField
    from upge.part import Data as Data
    from upge.part import DefaultFrom as DefaultFrom
    from upge.part import Denominator as Denominator
    from upge.part import Engine as Engine
    from upge.part import Follows as Follows
    from upge.part import LaterParameter as LaterParameter
    from upge.part import Mask as Mask
    from upge.part import Part as Part
    from upge.part import Reduction as Reduction
    from upge.part import Reward as Reward
    from upge.part import Selection as Selection
    from upge.part import Shaping as Shaping
    from upge.part import SomeData as SomeData
    from upge.part import Switch as Switch
    from upge.part import Weight as Weight
    from upge.processes import PipedProcess as PipedProcess
    from upge.recipe import Recipe as Recipe
    from upge.recipe import RecipeError as RecipeError
    from upge.recipe import load as load
    from upge.registry import register as register
    from upge.rollouts.sessions import opened as opened
    from upge.schedule import Number as Number
    from upge.schedule import Schedule as Schedule
    from upge.schedule import Within as Within
    from upge.schedule import at as at
    from upge.session_results import as_list as as_list
    from upge.session_results import as_score as as_score
    from upge.suggestions import did_you_mean as did_you_mean
    from upge.train.run import train as train
    from upge.types import Completion as Completion
    from upge.types import Context as Context
    from upge.types import DataSession as DataSession
    from upge.types import EngineSession as EngineSession
    from upge.types import FieldSession as FieldSession
    from upge.types import Message as Message
    from upge.types import Problem as Problem
    from upge.types import Request as Request
    from upge.types import Response as Response
    from upge.types import RewardSession as RewardSession
    from upge.types import Sampling as Sampling
    from upge.types import Trajectory as Trajectory

__version__ = "0.1.0"

_HOMES = {
    "upge.code": (
        "Code",
        "function_of",
    ),
    "upge.ema": ("Ema",),
    "upge.errors": (
        "InputError",
        "Terminated",
    ),
    "upge.estimator.batch": ("Batch",),
    "upge.estimator.credit": ("Credit",),
    "upge.estimator.estimator": ("Estimator",),
    "upge.estimator.part_errors": (
        "PartError",
        "error_text",
    ),
    "upge.estimator.term": ("Term",),
    "upge.estimator.view": ("View",),
    "upge.field_names": (
        "FieldName",
        "PromptField",
        "TokenField",
        "TrajectoryField",
    ),
    "upge.files": (
        "parse_json",
        "read_text",
        "regular_file",
    ),
    "upge.model": (
        "AskedModel",
        "ModelError",
        "Models",
        "Policy",
        "load_policy",
    ),
    "upge.model_paths": ("ModelPath",),
    "upge.part": (
        "AReward",
        "AnAdvantage",
        "AnEngine",
        "Advantage",
        "BatchField",
        "Data",
        "DefaultFrom",
        "Denominator",
        "Engine",
        "Follows",
        "LaterParameter",
        "Mask",
        "Part",
        "Reduction",
        "Reward",
        "Selection",
        "Shaping",
        "SomeData",
        "Switch",
        "Weight",
    ),
    "upge.processes": ("PipedProcess",),
    "upge.recipe": (
        "Recipe",
        "RecipeError",
        "load",
    ),
    "upge.registry": ("register",),
    "upge.rollouts.sessions": ("opened",),
    "upge.schedule": (
        "Number",
        "Schedule",
        "Within",
        "at",
    ),
    "upge.session_results": (
        "as_list",
        "as_score",
    ),
    "upge.suggestions": ("did_you_mean",),
    "upge.train.run": ("train",),
    "upge.types": (
        "Completion",
        "Context",
        "DataSession",
        "EngineSession",
        "FieldSession",
        "Message",
        "Problem",
        "Request",
        "Response",
        "RewardSession",
        "Sampling",
        "Trajectory",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME_OF)


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'upge' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
