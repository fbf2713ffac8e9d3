"""The benchmark of rollouts, on a model of no size: what it times, and that both sides do the same work."""

from __future__ import annotations

import pytest
import torch
from support import tiny_models as models

from upge.bench.rollouts import Demand, EndAt, measure, named, plain
from upge.bench.work import SMOLLM2
from upge.recipe import RecipeError

SMALL = SMOLLM2 | {"hidden_size": 36, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 200}
DEMAND = Demand(prompts=3, samples=2, shortest=2, longest=9, max_tokens=8)


def test_the_table_tells_lengths_speeds_and_their_ratio() -> None:
    table = measure(DEMAND, config=SMALL, repeats=2)
    assert len(table.facts["lengths"]) == 6
    assert max(table.facts["lengths"]) <= 8
    assert set(table.facts["tokens"].values()) == {sum(table.facts["lengths"])}
    seconds = table.facts["seconds"]
    assert [len(seconds[name]) for name in ("engine", "generate")] == [2, 2]
    assert table.facts["ratio"] == pytest.approx(sum(seconds["generate"]) / sum(seconds["engine"]))
    assert [row[0] for row in table.rows] == ["engine", "generate", "engine : generate"]


def test_another_engine_takes_over_the_weights_and_samples_beside_it() -> None:
    table = measure(DEMAND, config=SMALL, repeats=1, other=named("{use: transformers, batch_size: 2}"))
    assert [row[0] for row in table.rows[:4]] == ["engine", "generate", "transformers", "transformers, weights alone"]
    assert table.facts["tokens"]["transformers"] == table.facts["tokens"]["engine"], "draws are keyed"
    seconds = {name: times[0] for name, times in table.facts["seconds"].items()}
    rates = [table.facts["tokens"][name] / seconds[name] for name in ("engine", "transformers")]
    assert table.facts["ratios"]["engine : transformers"] == pytest.approx(rates[0] / rates[1])


def test_another_engine_is_one_that_a_recipe_could_name() -> None:
    with pytest.raises(RecipeError, match="did you mean 'vllm'"):
        named("vlm")


def test_generate_ends_each_row_where_it_is_told() -> None:
    model, lengths = models.llama(), [1, 5, 3, 8, 2, 4]
    requests, stop = DEMAND.requests(models.SIZE), models.SIZE - 1
    kept = model.generation_config
    rows = plain(model, requests, lengths, pad_id=0)
    assert rows.shape == (6, 9 + 8), "until the last row has ended"
    assert [(row[9:] == stop).nonzero()[0].item() + 1 for row in rows] == lengths
    assert model.generation_config is kept


def test_a_row_may_stop_at_its_length_alone() -> None:
    scores = EndAt([2, 1], 3, 4)(torch.zeros(2, 3), torch.zeros(2, 5))
    assert torch.isfinite(scores).tolist() == [[True, True, True, True, False], [False, False, False, False, True]]
