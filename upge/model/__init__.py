"""The policy: a causal language model and its tokenizer, opened, put to use and saved.

`load` opens a `Policy`; `Templater` turns problems and demonstrations into tokens; `log_probs` gives the estimator the
only thing it needs of a model: log π of each response token, with its gradient.
"""

from upge.errors import ModelError
from upge.model.chat_template import Prompt, Templater
from upge.model.critic import Critic, load_critic
from upge.model.loading import load, load_policy
from upge.model.log_probs import log_probs
from upge.model.models import AskedModel, Models
from upge.model.policy import Policy

__all__ = [
    "AskedModel",
    "Critic",
    "ModelError",
    "Models",
    "Policy",
    "Prompt",
    "Templater",
    "load",
    "load_critic",
    "load_policy",
    "log_probs",
]
