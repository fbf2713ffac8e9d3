"""Every prompt counts the same."""

from __future__ import annotations

from torch import Tensor

from upge import Reduction, View


class PromptMean(Reduction):
    """The mean over prompts of each one's token mean: long trajectories weigh more only among their own group.

        n_t = 1 / (G · Σ_{i of the prompt} |o_i|)      with G all prompts with a counted trajectory

    Shapes: → (T,), 1/(prompts · tokens). Source: DAPO, arXiv 2503.14476, and CISPO, arXiv 2506.13585, in print.
    """

    scope = "group"

    def __call__(self, b: View) -> Tensor:
        tokens = b.per_prompt(self.counted(b) * b.length)
        prompts = b.total(b.per_prompt(self.counted(b)) > 0)
        return 1 / (prompts * b.to_tokens(b.to_trajectories(tokens)))
