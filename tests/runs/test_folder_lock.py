"""A folder of one's own: no two processes choose the same, and what stays empty is not left behind."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from upge.errors import InputError
from upge.runs.folder_lock import claimed
from upge.runs.status import Lock


def test_whoever_comes_second_gets_another_folder(tmp_path: Path) -> None:
    with ExitStack() as stack:
        chosen = [stack.enter_context(claimed(tmp_path / "model")) for _ in range(3)]
        assert [folder.name for folder in chosen] == ["model", "model-2", "model-3"], "though all of them are empty"
        for folder in chosen:
            (folder / "completions.jsonl").touch()
    with claimed(tmp_path / "model") as folder:
        assert folder.name == "model-4"


def test_nobody_goes_on_where_another_is_at_work(tmp_path: Path) -> None:
    with claimed(tmp_path / "model") as folder:
        (folder / "completions.jsonl").touch()
        with pytest.raises(InputError, match="another process is at work"), claimed(folder, resume=True):
            pass
    with claimed(tmp_path / "model", resume=True) as again:
        assert again == folder


def test_a_lock_is_of_the_folder_that_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    lock = Lock(folder)
    assert lock.holds(folder)
    folder.rmdir()
    assert not lock.holds(folder)
    folder.mkdir()
    assert not lock.holds(folder), "another one, which somebody else may have"
    with pytest.raises(InputError, match="can't be opened: No such file"), claimed(tmp_path / "nowhere", resume=True):
        pass


def test_what_stays_empty_is_not_left_behind(tmp_path: Path) -> None:
    with pytest.raises(KeyError), claimed(tmp_path / "evaluations" / "hpt" / "model"):
        raise KeyError
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with claimed(tmp_path / "mine" / "model"):
        pass
    assert (tmp_path / "mine").is_dir(), "which was there before"


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"n: can't be made: File name too long"), claimed(tmp_path / ("n" * 300)):
        pass
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/model: can't be made: Not a directory"),
        claimed(tmp_path / "file/model"),
    ):
        pass
