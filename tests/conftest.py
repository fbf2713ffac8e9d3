"""What tests share: Hypothesis profiles (UPGE_PROFILE=dev|ci|nightly), one thread, and a folder of fake packages."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import torch
from hypothesis import HealthCheck, settings

from upge import discovery
from upge.grid.working import cores

torch.set_num_threads(1)

PROFILES = {"dev": 20, "ci": 100, "nightly": 2000}
for profile, examples in PROFILES.items():
    settings.register_profile(
        profile,
        max_examples=examples,
        deadline=None,
        derandomize=profile == "ci",
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("UPGE_PROFILE", "dev"))


WORKER = 3 * 2**30
"""Bytes that a process of `pytest -n auto` may come to hold."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """As many as there are cores, if the memory that is free lets them."""
    return max(1, min(cores(), psutil.virtual_memory().available // WORKER))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """A file's tests stay in one process, for they share what is costly to make; unless --dist says otherwise."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log) if config.getoption("dist") == "load" else None


class Site:
    """A folder on sys.path into which a test installs packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def install(self, package: str, entry_points: str, modules: Mapping[str, str] | None = None) -> None:
        """A `dist-info` with this entry_points.txt, and modules by their dotted name."""
        metadata = self.folder / f"{package.replace('-', '_')}-1.0.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (metadata / "entry_points.txt").write_text(entry_points, encoding="utf-8")
        for module, source in (modules or {}).items():
            path = self.folder.joinpath(*module.split(".")).with_suffix(".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source, encoding="utf-8")
        discovery.refresh()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """Fake installed packages, forgotten after the test."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield Site(tmp_path)
    for module in set(sys.modules) - before:
        own = sys.modules[module]
        places = (
            getattr(own, "__file__", None),
            *getattr(own, "__path__", ()),
        )  # a folder without __init__ has no file
        if any(str(place).startswith(str(tmp_path)) for place in places):
            del sys.modules[module]
    discovery.refresh()


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that the test registers are forgotten after it."""
    monkeypatch.setattr(discovery, "_registered", dict(discovery._registered))
