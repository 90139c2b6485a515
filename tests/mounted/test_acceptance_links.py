"""Acceptance cases 59 to 62, 72 and 75: hard links over copy-up, no writable branch, free space.

The default union is [W=rw, R=ro+wh] (aufs.md 11).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounting import Union
from tests.support.trees import describe, fails, fill, paths

pytestmark = pytest.mark.both_spellings

PLINK = ".wh..wh.plnk"


def linked(union: Union) -> None:
    """Fill R with the two names of case 59."""
    fill(union.R, "a")
    os.link(union.R / "a", union.R / "b")


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("+")


def test_case_59_links_survive_copy_up(union: Union) -> None:
    linked(union)
    top = union.start()
    number = (top / "b").stat().st_ino
    assert (top / "a").stat().st_ino == number
    append(top / "a")
    assert (top / "b").read_text() == "R+"
    for name in ("a", "b"):
        status = (top / name).stat()
        assert (status.st_ino, status.st_nlink, status.st_size) == (number, 2, 2)
    assert paths(union.W) == {"a"}
    (record,) = os.listdir(union.W / PLINK)
    assert (union.W / PLINK / record).stat().st_ino == (union.W / "a").stat().st_ino
    # A write through the other name reaches the same file.
    append(top / "b")
    assert (top / "a").read_text() == "R++"
    assert (union.W / "a").read_text() == "R++"
    assert (union.R / "a").read_text() == "R"
    union.remount()
    assert (top / "a").read_text() == (top / "b").read_text() == "R++"
    assert os.path.samefile(top / "a", top / "b")
    assert (top / "a").stat().st_nlink == 2


def test_case_59_without_plink_the_link_breaks(union: Union) -> None:
    linked(union)
    # aufs.md 6.5: both names report the old count until they are looked up again.
    union.no_comparison("the link count of a broken link is right only after it is read anew")
    top = union.start(options="noplink")
    append(top / "a")
    assert (top / "a").read_text() == "R+"
    assert (top / "b").read_text() == "R"
    assert PLINK not in os.listdir(union.W)
    assert paths(union.W) == {"a"}
    union.remount()
    assert (top / "a").read_text() == "R+"
    assert (top / "b").read_text() == "R"
    assert not os.path.samefile(top / "a", top / "b")


def test_case_61_unlinking_one_of_them(union: Union) -> None:
    linked(union)
    top = union.start()
    append(top / "a")
    number = (top / "b").stat().st_ino
    os.unlink(top / "a")
    status = (top / "b").stat()
    assert (status.st_nlink, status.st_ino, status.st_size) == (1, number, 2)
    assert (top / "b").read_text() == "R+"
    with fails("ENOENT"):
        os.stat(top / "a")
    union.remount()
    assert (top / "b").read_text() == "R+"
    assert (top / "b").stat().st_nlink == 1
    os.unlink(top / "b")
    assert os.listdir(top) == []
    union.remount()
    assert os.listdir(top) == []
    assert os.listdir(union.W / PLINK) == []


def test_case_62_linking_a_lower_file(union: Union) -> None:
    fill(union.R, "f")
    top = union.start()
    number = (top / "f").stat().st_ino
    os.link(top / "f", top / "g")
    assert (union.W / "g").read_text() == "R"
    assert not (union.W / "f").exists()
    for name in ("f", "g"):
        status = (top / name).stat()
        assert (status.st_ino, status.st_nlink) == (number, 2)
    (top / "g").write_text("via g")
    assert (top / "f").read_text() == "via g"
    assert (union.R / "f").read_text() == "R"
    assert "f" not in paths(union.W)
    union.remount()
    assert (top / "f").read_text() == "via g"
    assert os.path.samefile(top / "f", top / "g")
    assert (top / "f").stat().st_nlink == 2


def test_case_72_without_a_writable_branch(union: Union) -> None:
    fill(union.R, "f", "d/x", "empty/")
    (union.R / "link").symlink_to("f")
    fill(union.branch("M"), "g")
    top = union.start("M=ro+wh", "R=ro+wh")
    before = describe(union.branch("M"))
    assert (top / "f").read_text() == "R"
    assert sorted(os.listdir(top)) == ["d", "empty", "f", "g", "link"]
    assert os.readlink(top / "link") == "f"
    calls: list[Callable[[], object]] = [
        lambda: append(top / "f"),
        lambda: os.open(top / "f", os.O_WRONLY | os.O_TRUNC),
        lambda: os.truncate(top / "f", 0),
        lambda: os.open(top / "new", os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(top / "new"),
        lambda: os.mkfifo(top / "new"),
        lambda: os.symlink("f", top / "new"),
        lambda: os.link(top / "f", top / "new"),
        lambda: os.rename(top / "f", top / "new"),
        lambda: os.rename(top / "d", top / "new"),
        lambda: os.unlink(top / "f"),
        lambda: os.rmdir(top / "empty"),
        lambda: os.chmod(top / "f", 0o600),
        lambda: os.chown(top / "f", 1, 1),
        lambda: os.utime(top / "f"),
        lambda: os.setxattr(top / "f", "user.k", b"v"),
        lambda: os.chmod(top, 0o700),
    ]
    for call in calls:
        with fails("EROFS"):
            call()
    assert describe(union.branch("M")) == before


def test_case_75_free_space_is_that_of_the_top_branch(union: Union) -> None:
    union.tmpfs("W", "8m")
    top = union.start()
    seen = os.statvfs(top)
    assert seen.f_namemax == 242
    branch = os.statvfs(union.W)
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree"):
        assert getattr(seen, field) == getattr(branch, field), field
    with (top / "f").open("wb") as file:
        file.write(b"x" * (1 << 20))
    assert os.statvfs(top).f_bfree == os.statvfs(union.W).f_bfree < branch.f_bfree
