"""Matching a response with a pattern; runs in graders, since there are patterns that never end."""

from __future__ import annotations

import re


def prepare() -> None:
    """Nothing needs to be."""


def grade(pattern: str, response: str) -> float:
    """1.0 if the whole response matches, else 0.0."""
    return float(re.fullmatch(pattern, response, flags=re.DOTALL) is not None)
