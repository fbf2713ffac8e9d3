"""Keyed noise: a function of the trajectory, the position and the part's place, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import upge
from upge import Batch, Estimator
from upge.rollouts.rollout_batch import RolloutBatch
from upge.testing.batches import LONG, RICH, Case, permuted
from upge.testing.strategies import cases
from upge.types import Problem, Trajectory

EMPTY = frozenset[str]()


def noise(batch: Batch, place: str = "terms.rl.mask.0") -> Tensor:
    return upge.View(batch, EMPTY, place=place).noise


def trajectory_noise(batch: Batch, place: str = "terms.rl.mask.0") -> Tensor:
    return upge.View(batch, EMPTY, place=place).trajectory_noise


@given(case=cases(), seed=st.integers(0, 2**16))
def test_order_and_selection_leave_it_where_it_is(case: Case, seed: int) -> None:
    batch, random = case.batch, torch.Generator().manual_seed(seed)
    moved, tokens = permuted(batch, torch.randperm(batch.size, generator=random))
    assert torch.equal(noise(moved), noise(batch)[tokens])
    rows = torch.rand(batch.size, generator=random) < 0.5
    assert torch.equal(noise(batch.select(rows)), noise(batch)[rows[batch.trajectory]])
    assert torch.equal(trajectory_noise(batch.select(rows)), trajectory_noise(batch)[rows])
    some = torch.rand(batch.trajectory.shape, generator=random) < 0.5
    assert torch.equal(noise(batch.of_tokens(some)), noise(batch)[some])


def test_padding_and_other_numbers_leave_it_where_it_is() -> None:
    batch = RICH.batch
    assert batch.logp is not None
    longest = int(batch.length.max())
    mask = torch.arange(longest + 2)[None] < batch.length[:, None]
    padded = torch.zeros(mask.shape, dtype=torch.float64).masked_scatter(mask, batch.logp)
    same = Batch.from_padded(padded, mask, group=batch.group, reward=1 - batch.reward, key=batch.trajectory_key)
    assert torch.equal(noise(same), noise(batch))
    assert torch.equal(noise(replace(batch, logp=batch.logp * 2, reward=batch.reward + 1)), noise(batch))


def test_without_keys_the_group_and_the_place_in_it_are_the_key() -> None:
    batch = RICH.batch
    assert batch.key is None
    assert torch.equal(noise(replace(batch, key=batch.trajectory_key)), noise(batch))
    assert len(set(batch.trajectory_key.tolist())) == batch.size
    elsewhere = replace(batch, group=batch.group + 1)
    assert not bool((noise(elsewhere) == noise(batch)).any())


def test_it_is_uniform_and_differs_between_tokens_places_and_kinds() -> None:
    u = torch.cat([noise(LONG.batch, place) for place in ("a", "b", "terms.rl.mask.1")])
    assert len(torch.unique(u)) == len(u) > 10_000
    assert 0 <= float(u.min()) < 1e-3
    assert 1 - 1e-3 < float(u.max()) < 1
    counts = torch.histc(u, 10, 0.0, 1.0)
    assert float(((counts - len(u) / 10) ** 2 / (len(u) / 10)).sum()) < 27.9  # χ² with 9 degrees of freedom, p = .001
    pairs = torch.stack([u[:-1], u[1:]])
    assert abs(float(torch.corrcoef(pairs)[0, 1])) < 0.03


@pytest.mark.parametrize(("dtype", "bits"), [(torch.float32, 24), (torch.float64, 53)])
def test_its_digits_are_those_that_its_type_holds(dtype: torch.dtype, bits: int) -> None:
    batch = LONG.batch
    fields = {name: getattr(batch, name).to(dtype) for name in ("logp", "reward")}
    bare = Batch(trajectory=batch.trajectory, group=batch.group, demonstration=batch.demonstration, **fields)
    scaled = noise(bare).double() * 2.0**bits
    assert torch.equal(scaled, scaled.round())
    assert bool((scaled % 2 == 1).any())
    torch.testing.assert_close(noise(bare).double(), noise(batch), rtol=0, atol=2.0**-24)


def test_it_is_the_same_in_all_epochs_and_other_at_another_step_seed_sample_and_time() -> None:
    one = Trajectory(Problem("p", "?", "a"), (1,), (2, 3), "", 1.0, demonstration=False, sample=0)
    others = [replace(one, sample=1), replace(one, time=1), replace(one, demonstration=True, sample=-1)]

    def of(trajectories: list[Trajectory], seed: int = 0, step: int = 0) -> list[float]:
        batch = RolloutBatch.of(trajectories, torch.device("cpu"), torch.float64, seed=seed, step=step).batch
        return trajectory_noise(batch).tolist()

    assert of([one, *others])[0] == of([one])[0] == of([replace(one, group=5, text="other")])[0]
    found = [*of([one, *others]), *of([one], seed=1), *of([one], step=1)]
    assert len(set(found)) == 6


class Coin(upge.Mask):
    """Half of the trajectories, by chance."""

    def __call__(self, b: upge.View) -> Tensor:
        return b.to_tokens(b.trajectory_noise < 0.5).to(b.dtype)


def test_two_parts_of_a_kind_draw_apart() -> None:
    term = {"source": "all", "denominator": "current", "advantage": "one", "reduction": "token_mean"}
    both = Estimator.model_validate({"terms": {"rl": {**term, "mask": [Coin(), Coin()]}}})
    batch = LONG.batch
    mask = both.weigh(batch, both.count(batch, both.credit(batch))).terms["rl"].mask
    first = trajectory_noise(batch) < 0.5
    second = trajectory_noise(batch, "terms.rl.mask.1") < 0.5
    assert not torch.equal(first, second)
    assert torch.equal(mask != 0, (first & second)[batch.trajectory])


def test_noise_cannot_be_written_in_place_of_the_keys() -> None:
    with pytest.raises(ValueError, match=r"Batch.key is torch.float64; it should be integers"):
        replace(RICH.batch, key=torch.zeros(RICH.batch.size, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"Batch.key has shape \(3,\); it should be \(N,\)"):
        replace(RICH.batch, key=torch.zeros(3, dtype=torch.int64))
