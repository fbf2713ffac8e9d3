"""Hypothesis draws the same examples everywhere, and takes the time that they take; torch takes one thread."""

from __future__ import annotations

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("upge-gmpo", max_examples=50, deadline=None, derandomize=True, database=None)
settings.load_profile("upge-gmpo")
