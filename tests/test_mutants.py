"""The tests can fail: every hand-made mutant is killed by the laws, and the code as it is survives them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache, partial

import laws
import pytest
import torch
from methods import CLIP, METHODS, RL, SFT, Given
from mutants import MUTANTS, Mutant
from registry import FACTORS, describe, estimator, host, made, values
from strategies import EMPTY, Case, seeded
from test_gradients import (
    BOUNDS,
    test_clip_is_the_surrogates_derivative_on_and_around_every_bound,
    test_clip_keeps_the_gradient_at_its_bounds_and_drops_it_just_beyond,
)
from test_laws import TERMS, test_an_impossible_token_without_weight_costs_nothing
from test_laws import test_a_part_that_reads_what_it_did_not_declare_is_told_so as test_reading_the_undeclared
from test_laws import test_a_masked_token_with_a_huge_ratio_has_no_weight as test_a_huge_ratio

Check = Callable[[], None]
CASES = [case for case in seeded(30)]
FEW = CASES[:14]

