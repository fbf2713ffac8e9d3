"""Numbers of a run have the model's precision, and updates that its weights are too coarse for are reported."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch

import upge
from upge.flow import Problem, Trajectory
from upge.run.trainer import open_accelerator, open_learner, open_policy


@pytest.mark.parametrize(("dtype", "bound"), [("float64", 1e-14), ("float32", 1e-5)])
def test_log_probs_are_of_the_temperature_that_the_recipe_says(tmp_path: Path, dtype: str, bound: float) -> None:
    path = tiny.recipe(tmp_path, tiny.GPT2, model={"dtype": dtype}, rollout={"temperature": 0.7})
    recipe = upge.load(path)
    policy = open_policy(recipe)
    learner = open_learner(recipe, policy, open_accelerator(recipe))
    prompt, response = (2, 3, 5), (4, 2, 3)
    rollout = Trajectory(Problem("p", "", ""), prompt, response, "", 0.0, demonstration=False)
    found = learner._policy_of(0)([rollout])
    with torch.no_grad():
        logits = policy.model(torch.tensor([[*prompt, *response[:-1]]])).logits[0, 2:].double()
    wanted = (logits / 0.7).log_softmax(-1)[range(3), list(response)]
    torch.testing.assert_close(found.double(), wanted, rtol=0.0, atol=bound)
