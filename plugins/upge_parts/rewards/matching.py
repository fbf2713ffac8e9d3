"""Matching a response with a pattern; runs in graders, since there are patterns that never end."""

from __future__ import annotations

import re


def prepare() -> None:
    """Nothing needs to be."""


def grade(pattern: str, *forms: str) -> float:
    """1.0 if a form of the response matches as a whole, else 0.0."""
    return float(any(re.fullmatch(pattern, form, flags=re.DOTALL) is not None for form in forms))
