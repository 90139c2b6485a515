"""Directories: listings that are large, deep, long or changing, and the numbers in them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import time
from pathlib import Path

from tests.support.directories import Listing, entries, listed
from tests.support.mounting import Union
from tests.support.oracle import Oracle, symbol_of
from tests.support.processes import drop_caches
from tests.support.trees import fails, fill, paths


def test_making_and_removing(oracle: Oracle, udba: str) -> None:
    def build(place: Path) -> None:
        fill(place, "d/in", "empty/", "f")

    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        return (
            symbol_of(os.mkdir, top / "d"),
            symbol_of(os.mkdir, top / "f"),
            symbol_of(os.mkdir, top / "f/x"),
            symbol_of(os.mkdir, top / "no/x"),
            symbol_of(os.rmdir, top / "d"),
            symbol_of(os.rmdir, top / "f"),
            symbol_of(os.rmdir, top / "absent"),
            symbol_of(os.rmdir, f"{top}/empty/."),
            symbol_of(os.unlink, top / "d"),
            symbol_of(os.unlink, top / "absent"),
            symbol_of(os.unlink, f"{top}/f/"),
            symbol_of(os.rmdir, top / "empty"),
            symbol_of(os.rmdir, top / "empty"),
            symbol_of(os.mkdir, top / "empty"),
            symbol_of(os.unlink, top / "d/in"),
            symbol_of(os.rmdir, top / "d"),
            symbol_of(os.mkdir, top / "d"),
            os.listdir(top / "d"),
            sorted(os.listdir(top)),
        )

    oracle.same(scenario)


def test_types_and_numbers_of_every_kind(union: Union) -> None:
    for branch in (union.R, union.W):
        (branch / "d").mkdir()
        name = branch.name
        (branch / f"d/file{name}").touch()
        (branch / f"d/dir{name}").mkdir()
        (branch / f"d/link{name}").symlink_to("x")
        os.mkfifo(branch / f"d/pipe{name}")
        os.mknod(branch / f"d/sock{name}", stat.S_IFSOCK)
        os.mknod(branch / f"d/char{name}", stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(branch / f"d/block{name}", stat.S_IFBLK, os.makedev(7, 0))
    top = union.start()
    found = entries(top / "d")
    assert len(found) == 14
    for entry in found:
        status = os.lstat(top / "d" / entry.name)
        assert entry.number == status.st_ino
        assert entry.type == stat.S_IFMT(status.st_mode) >> 12
    with Listing(top / "d") as listing:
        here, above = listing.entry(), listing.entry()
    assert here
    assert above
    assert (here.name, here.number) == (".", os.stat(top / "d").st_ino)
    assert (above.name, above.number) == ("..", os.stat(top).st_ino)


def test_numbers_are_unique_over_branches_and_types(union: Union) -> None:
    """Branches on two filesystems have the same inode numbers; the union must not."""
    union.tmpfs("W", "8m")
    union.tmpfs("M", "8m")
    for branch in (union.W, union.branch("M"), union.R):
        fill(branch, *(f"{branch.name}{number}" for number in range(20)), f"dir{branch.name}/")
        (branch / f"link{branch.name}").symlink_to("x")
    top = union.start("W=rw", "M=ro+wh", "R=ro+wh")
    numbers = [os.lstat(top / name).st_ino for name in os.listdir(top)]
    assert len(numbers) == len(set(numbers)) == 66


def test_numbers_stay_over_copy_up_and_forgetting(union: Union, udba: str) -> None:
    fill(union.R, "a/b/f", "a/g", "a/h", "a/renamed")
    os.link(union.R / "a/h", union.R / "a/h2")
    top = union.start(options=udba)
    names = ["a", "a/b", "a/b/f", "a/g", "a/h", "a/h2"]
    renamed = os.stat(top / "a/renamed").st_ino
    before = [os.stat(top / name).st_ino for name in names]
    drop_caches()
    assert [os.stat(top / name).st_ino for name in names] == before
    os.chmod(top / "a/b/f", 0o600)
    (top / "a/g").write_text("changed")
    (top / "a/h").write_text("changed")
    os.rename(top / "a/renamed", top / "moved")
    assert [os.stat(top / name).st_ino for name in names] == before
    drop_caches()
    assert [os.stat(top / name).st_ino for name in reversed(names)] == before[::-1]
    assert os.stat(top / "moved").st_ino == renamed
    assert {entry.name: entry.number for entry in entries(top / "a")}["g"] == before[3]


def test_a_large_directory_takes_linear_time(union: Union) -> None:
    union.no_comparison("tens of thousands of entries: smaller directories show the same")
    union.ignore_branches("for the same reason")
    union.tmpfs("R", "64m")
    for name, count in (("small", 10_000), ("large", 20_000)):
        (union.R / name).mkdir()
        for number in range(count):
            os.mknod(union.R / name / f"name{number}")
    top = union.start(options="udba=none")

    def seconds(name: str, count: int) -> float:
        begin = time.perf_counter()
        assert len(os.listdir(top / name)) == count
        return time.perf_counter() - begin

    small = min(seconds("small", 10_000) for _ in range(2))
    large = min(seconds("large", 20_000) for _ in range(2))
    assert large < small * 2 * 1.8 + 0.1, f"{small:.2f} s, {large:.2f} s for twice as many"
    assert large < 10

    # Nor does a change there cost more because there are many.
    begin = time.perf_counter()
    for number in range(100):
        os.unlink(top / f"large/name{number}")
        (top / f"large/new{number}").touch()
    assert time.perf_counter() - begin < 5
    assert len(os.listdir(top / "large")) == 20_000


def test_a_tree_a_thousand_levels_deep(union: Union) -> None:
    def descend(start: Path, levels: int, *, make: bool) -> int:
        fd = os.open(start, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(levels):
            if make:
                os.mkdir("d", dir_fd=fd)
            below = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        return fd

    bottom = descend(union.R, 1000, make=True)
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=bottom))
    os.close(bottom)
    union.no_comparison("a thousand parents: shallow trees show the same")
    union.clear_afterwards("deeper than Python recurses")
    top = union.start()
    fd = descend(top, 1000, make=False)
    assert os.listdir(fd) == ["f"]
    os.chmod("f", 0o600, dir_fd=fd)
    os.mkdir("new", dir_fd=fd)
    os.rename("f", "g", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    union.remount()
    fd = descend(top, 1000, make=False)
    assert sorted(os.listdir(fd)) == ["g", "new"]
    os.close(fd)
    subprocess.run(["rm", "-r", top / "d"], check=True)
    assert listed(top) == []
    union.settle()
    assert paths(union.W) == {".wh.d"}


def test_paths_longer_than_the_system_takes_at_once(union: Union) -> None:
    """Forty names of 242 bytes: more than 4,096 for a branch path, which is never joined."""
    name = "n" * 242
    fd = os.open(union.R, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(40):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    union.no_comparison("a path of this length cannot be named")
    union.clear_afterwards("longer than a path may be")
    top = union.start()
    found = []
    for _ in range(2):
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
        for _ in range(40):
            below = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = below
        for inside in os.listdir(fd):
            os.chmod(inside, 0o600, dir_fd=fd)
            os.rename(inside, inside + "x", src_dir_fd=fd, dst_dir_fd=fd)
        with fails("ENAMETOOLONG"):
            os.mkdir("n" * 243, dir_fd=fd)
        found.append(os.listdir(fd))
        os.close(fd)
        union.remount()
    assert found == [["fx"], ["fxx"]]
    subprocess.run(["rm", "-r", top / name], check=True)
    assert listed(top) == []


def test_a_directory_that_is_open_while_it_is_removed(oracle: Oracle, udba: str) -> None:
    def build(place: Path) -> None:
        fill(place, "d/a", "d/b")

    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        fd = os.open(top / "d", os.O_RDONLY | os.O_DIRECTORY)
        try:
            shutil.rmtree(top / "d")
            os.mkdir(top / "d")
            (top / "d/new").touch()
            return os.listdir(top / "d"), symbol_of(os.stat, "a", dir_fd=fd), os.fstat(fd).st_nlink
        finally:
            os.close(fd)

    oracle.same(scenario)


def test_removing_while_listing(oracle: Oracle) -> None:
    """``rm -r`` reads a little, removes what it has read, and reads on."""

    def build(place: Path) -> None:
        fill(place, *(f"d/name{number}" + "x" * 200 for number in range(150)))

    oracle.start(build)

    def scenario(top: Path) -> object:
        removed = 0
        with Listing(top / "d") as listing:
            while (name := listing.next()) is not None:
                if name not in (".", ".."):
                    os.unlink(top / "d" / name)
                    removed += 1
        os.rmdir(top / "d")
        return removed, (top / "d").exists()

    assert oracle.same(scenario) == (150, False)
