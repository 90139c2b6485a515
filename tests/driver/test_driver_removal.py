"""Deleting a tree whatever is in it or mounted there (driver.md 1.9, 6.6)."""

from __future__ import annotations

import errno
import os
import subprocess
import time
from pathlib import Path

import pytest

from driver import mounttable, removal
from tests.support.interleaving import Stepped, stepwise


def fill(base: Path, *names: str) -> Path:
    for name in names:
        path = base / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("foobar")
    return base


def test_removal_of_nothing(tmp_path: Path) -> None:
    removal.remove_by_force(str(tmp_path / "missing"))
    removal.remove_atomically(str(tmp_path / "missing"))


def test_removal_of_a_file(tmp_path: Path) -> None:
    fill(tmp_path, "file")
    removal.remove_by_force(str(tmp_path / "file"))
    assert not (tmp_path / "file").exists()


def test_removal_of_a_symlink_leaves_its_target(tmp_path: Path) -> None:
    fill(tmp_path, "target/file")
    (tmp_path / "link").symlink_to("target")
    removal.remove_by_force(str(tmp_path / "link"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["state", "target"]
    assert (tmp_path / "target/file").exists()


def test_removal_of_a_tree(tmp_path: Path) -> None:
    tree = fill(tmp_path / "tree", "a/b/c/d/", "a/b/file", "0/1/0/file", "1", "2/0/1/2/", "a/0")
    (tree / "a/link").symlink_to("/")
    removal.remove_atomically(str(tree))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_removal_of_a_tree_deeper_than_descriptors_go(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    for level in range(1500):
        os.mkdir("deep", dir_fd=fd)
        os.mkdir(f"{level}", dir_fd=fd)
        deeper = os.open("deep", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(fd)
    removal.remove_by_force(str(tmp_path / "deep"))
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("where", ["inside", "deep/er/inside"])
def test_removal_with_a_mount_inside(tmp_path: Path, where: str) -> None:
    outside = fill(tmp_path / "outside", "precious")
    inside = tmp_path / "tree" / where
    inside.mkdir(parents=True)
    subprocess.run(["mount", "--bind", outside, inside], check=True)
    before = time.monotonic()
    removal.remove_by_force(str(tmp_path / "tree"))
    assert time.monotonic() - before < 5
    assert not (tmp_path / "tree").exists()
    assert (outside / "precious").exists()
    assert mounttable.mounts_below(str(tmp_path)) == []


def test_removal_with_a_file_mounted_inside(tmp_path: Path) -> None:
    outside = fill(tmp_path / "outside", "precious")
    tree = fill(tmp_path / "tree", "a/file")
    subprocess.run(["mount", "--bind", outside / "precious", tree / "a/file"], check=True)
    removal.remove_by_force(str(tree))
    assert not tree.exists()
    assert (outside / "precious").read_text() == "foobar"


def test_removal_never_enters_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = fill(tmp_path / "outside", "a/precious")
    inside = tmp_path / "tree" / "inside"
    inside.mkdir(parents=True)
    subprocess.run(["mount", "--bind", outside, inside], check=True)
    monkeypatch.setattr(mounttable, "mounts_below", lambda _path: [])
    monkeypatch.setattr(removal, "_PAUSE", 0)
    removal.remove_by_force(str(tmp_path / "tree"))
    assert (outside / "a/precious").exists()
    assert not (tmp_path / "tree").exists()


def test_removal_gives_up_on_what_stays_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = fill(tmp_path / "tree", "a/file")
    tries = []

    def busy(*_args: object, **_keywords: object) -> None:
        tries.append(1)
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(removal, "_PAUSE", 0)
    monkeypatch.setattr(os, "rmdir", busy)
    with pytest.raises(OSError) as caught:
        removal.remove_by_force(str(tree))
    assert caught.value.errno == errno.EBUSY
    assert len(tries) == 50


def test_atomic_removal_of_a_half_removed_tree(tmp_path: Path) -> None:
    fill(tmp_path, "tree-removing/file")
    removal.remove_atomically(str(tmp_path / "tree"))
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_atomic_removal_refuses_an_occupied_name(tmp_path: Path) -> None:
    fill(tmp_path, "tree-removing/file", "tree/file")
    with pytest.raises(FileExistsError, match="by hand"):
        removal.remove_atomically(str(tmp_path / "tree"))
    assert (tmp_path / "tree/file").exists()


def test_two_processes_delete_one_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is stopped before each of its system calls in turn, and the other does all its work."""
    calls = 0
    ended = False
    while not ended:
        tree = tmp_path / "tree"
        for name in ("a/b/c", "a/b/d", "e/f/g", "e/0", "1"):
            (tree / name).mkdir(parents=True)
            (tree / name / "file").touch()
        with stepwise(monkeypatch):
            one = Stepped(lambda path=str(tree): removal.remove_by_force(path))  # type: ignore[misc]
            for _ in range(calls):
                one.step()
            ended = one.ended
            other = Stepped(lambda path=str(tree): removal.remove_by_force(path))  # type: ignore[misc]
            for _ in range(12):
                other.step()
            one.finish()
            other.finish()
        assert not tree.exists()
        calls += 1
    assert calls > 20
