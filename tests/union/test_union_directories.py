"""Open directories: few stay open, all can be used (``unionfs/union/directories.py``)."""

from __future__ import annotations

import os

import pytest

from tests.support.cores import Core
from tests.support.trees import fails, fill


@pytest.fixture
def deep(core: Core) -> Core:
    """A tree of 40 directories on two branches, and room for four open ones."""
    for number in range(20):
        fill(core.branch("R"), f"d{number}/sub/f")
    fill(core.branch("W"), *(f"d{number}/" for number in range(0, 20, 2)))
    core.start()
    core.union.state.directories.limit = 4
    return core


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_only_so_many_are_open(deep: Core) -> None:
    before = descriptors()
    for _ in range(2):
        for number in range(20):
            assert deep.read(f"d{number}/sub/f") == b"R"
            assert len(deep.union.state.directories) <= 4
    assert descriptors() <= before + 4


def test_everything_can_be_changed_with_few(deep: Core) -> None:
    before = descriptors()
    for number in range(20):
        here, there = f"d{number}", f"d{(number + 7) % 20}"
        deep.write(f"{here}/sub/f", b"W")
        deep.create(f"{here}/sub/new", b"new")
        deep.link(f"{here}/sub/new", f"{there}/link{number}")
        deep.rename(f"{here}/sub/f", f"{there}/moved{number}")
        deep.unlink(f"{here}/sub/new")
        deep.rmdir(f"{here}/sub")
        deep.mkdir(f"{here}/sub")
    assert len(deep.union.state.directories) <= 4
    # Beside them there are the record of inode numbers and the directory of pseudo-links.
    assert descriptors() <= before + 6
    seen = [sorted(deep.names(f"d{number}")) for number in range(20)]
    for number in range(20):
        there = f"d{(number + 7) % 20}"
        assert deep.read(f"{there}/moved{number}") == b"W"
        assert deep.read(f"{there}/link{number}") == b"new"
        assert deep.names(f"d{number}/sub") == []
    deep.start()
    assert [sorted(deep.names(f"d{number}")) for number in range(20)] == seen


def test_the_least_recently_used_goes(deep: Core) -> None:
    directories = deep.union.state.directories
    deep.read("d1/sub/f")
    used = directories.reopened
    for number in range(3, 15, 2):
        deep.node(f"d{number}/sub")
        deep.read("d1/sub/f")
    again = directories.reopened
    deep.read("d1/sub/f")
    assert directories.reopened == again, "what is used all the time was closed"
    assert again > used


def test_a_closed_directory_is_found_after_it_was_moved(deep: Core) -> None:
    deep.mkdir("d0/own")
    deep.mkdir("d0/own/below")
    deep.create("d0/own/below/f", b"data")
    below = deep.directory("d0/own/below")
    deep.rename("d0/own", "d2/elsewhere")
    deep.union.state.directories.close_all()
    entry = deep.union.lookup(below, b"f")
    assert entry.status.st_size == 4
    assert deep.read("d2/elsewhere/below/f") == b"data"


def test_a_directory_that_was_exchanged_on_the_branch_is_noticed(deep: Core) -> None:
    node = deep.directory("d1/sub")
    os.rename(deep.base / "R/d1/sub", deep.base / "R/d1/old")
    (deep.base / "R/d1/sub").mkdir()
    deep.union.state.directories.close_all()
    with fails("ESTALE"):
        deep.union.lookup(node, b"f")
    assert deep.names("d1/sub") == []


def test_a_directory_that_has_become_a_link_is_not_followed(deep: Core) -> None:
    node = deep.directory("d1/sub")
    os.rename(deep.base / "R/d1/sub", deep.base / "R/d1/old")
    os.symlink("old", deep.base / "R/d1/sub")
    deep.union.state.directories.close_all()
    with fails("ESTALE"):
        deep.union.lookup(node, b"f")


def test_a_tree_a_thousand_levels_deep(core: Core) -> None:
    path = core.branch("R")
    fd = os.open(path, os.O_RDONLY)
    for _ in range(1000):
        os.mkdir("d", dir_fd=fd)
        below = os.open("d", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    core.start()
    core.union.state.directories.limit = 4
    bottom = core.directory("/".join(["d"] * 1000))
    for node in (bottom.parent, bottom):
        core.union.state.directories.close_all()
        assert node.path() == [b"d"] * (1000 - (node is not bottom))
        assert len([*core.union.read_directory(core.union.open_directory(node), 0)]) == 1
    core.union.state.directories.close_all()
    core.write("/".join([*["d"] * 1000, "f"]), b"deep")
    assert core.read("/".join([*["d"] * 1000, "f"])) == b"deep"
    core.stop()
    _remove_deep(core.base / "W")
    _remove_deep(core.base / "R")


def _remove_deep(top: os.PathLike[str]) -> None:
    """Remove a tree that is too deep for shutil: level by level from its top."""
    holder = os.open(top, os.O_RDONLY)
    while True:
        try:
            inner = os.open("d", os.O_RDONLY, dir_fd=holder)
        except FileNotFoundError:
            break
        for name in os.listdir(inner):
            if name == "d":
                os.rename("d", "next", src_dir_fd=inner, dst_dir_fd=holder)
            else:
                os.unlink(name, dir_fd=inner)
        os.close(inner)
        os.rmdir("d", dir_fd=holder)
        if "next" in os.listdir(holder):
            os.rename("next", "d", src_dir_fd=holder, dst_dir_fd=holder)
    os.close(holder)
