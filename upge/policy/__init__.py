"""The policy: a causal language model and its tokenizer, opened, put to use and saved.

`load` opens a `Policy`; `Templater` turns problems and demonstrations into tokens; `log_probs` gives the estimator the
only thing it needs of a model: log π of each response token, with its gradient.
"""

from upge.policy.critic import Critic, load_critic
from upge.policy.errors import ModelError
from upge.policy.loading import load
from upge.policy.logprobs import log_probs
from upge.policy.policy import Policy
from upge.policy.reference import Reference, load_reference
from upge.policy.templating import Prompt, Templater

load_policy = load

__all__ = [
    "Critic",
    "ModelError",
    "Policy",
    "Prompt",
    "Reference",
    "Templater",
    "load",
    "load_critic",
    "load_policy",
    "load_reference",
    "log_probs",
]
