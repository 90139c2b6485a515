"""How many bytes a layer holds (driver.md 1.8)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from driver.size import branch_size


def fill(base: Path, *names: str) -> Path:
    for name in names:
        path = base / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("foobar")
    return base


def test_size_of_an_empty_directory(tmp_path: Path) -> None:
    assert branch_size(str(tmp_path / "state" / "..")) == 0


def test_size_of_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert branch_size(str(tmp_path)) == 0


def test_size_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("abcde")
    assert branch_size(str(tmp_path)) == 5


def test_size_of_nested_directories(tmp_path: Path) -> None:
    fill(tmp_path, "a/b/")
    assert branch_size(str(tmp_path)) == 0


def test_size_of_a_file_and_a_directory(tmp_path: Path) -> None:
    fill(tmp_path, "file", "a/")
    assert branch_size(str(tmp_path)) == 6


def test_size_of_nested_files(tmp_path: Path) -> None:
    fill(tmp_path, "a/file", "a/b/file")
    assert branch_size(str(tmp_path)) == 12


def test_size_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        branch_size(str(tmp_path / "missing"))


def test_size_counts_an_inode_once_and_a_symlink_by_its_text(tmp_path: Path) -> None:
    fill(tmp_path, "a/file")
    os.link(tmp_path / "a/file", tmp_path / "again")
    (tmp_path / "link").symlink_to("12345")
    assert branch_size(str(tmp_path)) == 11


def test_size_leaves_out_what_is_private(tmp_path: Path) -> None:
    fill(tmp_path, ".wh..wh.orph/x", ".wh..wh.plnk/.keep/", "a/.wh..wh.b.0001", "a/file")
    (tmp_path / ".wh.gone").touch()
    (tmp_path / ".wh..wh.plnk/.keep").rmdir()
    assert branch_size(str(tmp_path)) == 6
