"""Acceptance cases 35 to 57, and 76: creating, removing and renaming, the whiteouts that takes.

The default union is [W=rw, R=ro+wh]; files hold the name of their branch as text (aufs.md 11).
"""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    renameat2,
)
from tests.support.directories import listed
from tests.support.mounting import Union
from tests.support.processes import eventually
from tests.support.trees import (
    PRIVATE,
    assert_whiteout,
    describe,
    differences,
    fails,
    fill,
    paths,
    temporaries,
)

pytestmark = pytest.mark.both_spellings

# Create and remove


def test_case_35_a_whiteout_is_made_only_where_something_is_hidden(union: Union) -> None:
    fill(union.W, "own")
    fill(union.R, "f")
    top = union.start()
    os.unlink(top / "own")
    assert paths(union.W) == set()
    os.unlink(top / "f")
    assert paths(union.W) == {".wh.f"}
    assert_whiteout(union.W, "f")
    assert listed(top) == []
    assert (union.R / "f").read_text() == "R"


def test_case_35_with_nolwh_each_whiteout_is_a_file_of_its_own(union: Union) -> None:
    fill(union.R, "f", "g")
    top = union.start("W=rw+nolwh", "R=ro+wh")
    assert set(os.listdir(union.W)) == PRIVATE - {".wh..wh.aufs"}
    for name in ("f", "g"):
        os.unlink(top / name)
        status = (union.W / f".wh.{name}").lstat()
        assert stat.S_ISREG(status.st_mode)
        assert (stat.S_IMODE(status.st_mode), status.st_size, status.st_nlink) == (0o444, 0, 1)
    assert set(os.listdir(union.W)) == (PRIVATE - {".wh..wh.aufs"}) | {".wh.f", ".wh.g"}


def test_case_36_removing_a_file_that_covers_another(union: Union) -> None:
    fill(union.W, "f")
    fill(union.R, "f")
    top = union.start()
    os.unlink(top / "f")
    assert paths(union.W) == {".wh.f"}
    assert_whiteout(union.W, "f")
    with fails("ENOENT"):
        os.stat(top / "f")


@pytest.mark.parametrize(("permission", "needed"), [("ro+wh", False), ("ro", True)])
def test_case_37_what_is_hidden_already_needs_no_whiteout(
    union: Union, permission: str, needed: bool
) -> None:
    fill(union.W, "f")
    fill(union.branch("M"), ".wh.f")
    fill(union.R, "f")
    top = union.start("W=rw", f"M={permission}", f"R={permission}")
    os.unlink(top / "f")
    assert paths(union.W) == ({".wh.f"} if needed else set())
    with fails("ENOENT"):
        os.stat(top / "f")


def test_case_38_creating_again_removes_the_whiteout(union: Union) -> None:
    makers: dict[str, Callable[[Path], object]] = {
        "file": lambda path: path.write_text("again"),
        "symlink": lambda path: path.symlink_to("elsewhere"),
        "fifo": os.mkfifo,
        "node": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
        "link": lambda path: os.link(path.with_name("other"), path),
        "renamed": lambda path: os.rename(path.with_name("third"), path),
    }
    fill(union.R, *makers, "other", "third")
    top = union.start()
    for name, make in makers.items():
        os.unlink(top / name)
        assert_whiteout(union.W, name)
        with fails("ENOENT"):
            os.stat(top / name)
        make(top / name)
        assert (union.W / name).is_symlink() or (union.W / name).exists()
        assert not (union.W / f".wh.{name}").exists()
    assert (top / "file").read_text() == "again"
    assert (top / "link").read_text() == (top / "renamed").read_text() == "R"
    assert (top / "file").stat().st_size == 5


def test_case_39_a_directory_created_again_is_opaque(union: Union) -> None:
    fill(union.R, "d/a", "d/b/c/e", "d/f/")
    top = union.start()
    shutil.rmtree(top / "d")
    assert_whiteout(union.W, "d")
    (top / "d").mkdir()
    union.settle()
    assert paths(union.W) == {"d", "d/.wh..wh..opq"}
    mark, base = (union.W / "d/.wh..wh..opq").lstat(), (union.W / ".wh..wh.aufs").lstat()
    assert (mark.st_ino, mark.st_size) == (base.st_ino, 0)
    assert listed(top / "d") == []
    with fails("ENOENT"):
        os.stat(top / "d/a")
    # A name that lies below the mark is created without a trace of the old one.
    (top / "d/b").mkdir()
    assert listed(top / "d/b") == []


def test_case_40_a_new_directory_is_not_opaque(union: Union) -> None:
    top = union.start()
    (top / "d").mkdir()
    assert paths(union.W) == {"d"}


def test_case_41_a_directory_that_is_logically_empty(union: Union) -> None:
    fill(union.R, "d/x")
    top = union.start()
    os.unlink(top / "d/x")
    assert paths(union.W) == {"d", "d/.wh.x"}
    os.rmdir(top / "d")
    assert_whiteout(union.W, "d")
    assert not (union.W / "d").exists()
    eventually(lambda: not temporaries(union.W), "the old directory goes")
    assert paths(union.W) == {".wh.d"}


def test_case_42_a_directory_that_is_not_empty(union: Union) -> None:
    fill(union.R, "d/x")
    top = union.start()
    with fails("ENOTEMPTY"):
        os.rmdir(top / "d")
    assert paths(union.W) == set()
    assert (top / "d/x").read_text() == "R"


def test_case_43_many_whiteouts_are_removed_in_the_background(union: Union) -> None:
    names = [f"d/x{number}" for number in range(200)]
    fill(union.R, *names, "e/y")
    top = union.start()
    for name in names:
        os.unlink(top / name)
    assert len(paths(union.W)) == 201
    begin = time.monotonic()
    os.rmdir(top / "d")
    assert time.monotonic() - begin < 2
    assert not (union.W / "d").exists()
    with fails("ENOENT"):
        os.stat(top / "d")
    # Unmounting waits for what is still to be done.
    union.stop()
    assert paths(union.W) == {".wh.d"}
    union.start()
    assert listed(top) == ["e"]


def test_case_44_a_directory_in_many_layers(union: Union) -> None:
    fill(union.branch("l4"), "tmp/dc/z")
    fill(union.branch("l3"), "tmp/dc/")
    fill(union.branch("l2"), "tmp/.wh.b")
    fill(union.branch("l1"), "tmp/dc/")
    fill(union.branch("l0"), "tmp/")
    top = union.start("l5=rw", *(f"l{number}=ro+wh" for number in (4, 3, 2, 1, 0)))
    shutil.rmtree(top / "tmp/dc")
    assert_whiteout(union.branch("l5"), "tmp/dc")
    with fails("ENOENT"):
        os.stat(top / "tmp/dc")
    assert listed(top / "tmp") == []


@pytest.mark.parametrize("udba", ["reval", "none"])
@pytest.mark.parametrize("parent_too", [False, True])
def test_case_45_an_unlinked_file_goes_on(union: Union, parent_too: bool, udba: str) -> None:
    (union.R / "d").mkdir()
    (union.R / "d/f").write_bytes(b"R" * 10000)
    top = union.start(options=f"udba={udba}")
    fd = os.open(top / "d/f", os.O_RDWR)
    try:
        os.unlink(top / "d/f")
        if parent_too:
            os.rmdir(top / "d")
        assert os.pread(fd, 4, 0) == b"RRRR"
        assert os.pwrite(fd, b"new", 5000) == 3
        assert os.pread(fd, 5, 4999) == b"RnewR"
        assert os.fstat(fd).st_size == 10000
        assert os.fstat(fd).st_nlink == 0
        os.ftruncate(fd, 5003)
        assert os.pread(fd, 100, 5000) == b"new"
    finally:
        os.close(fd)
    whiteout = ".wh.d" if parent_too else "d/.wh.f"
    union.settle()
    # The file itself goes when the kernel tells that the last descriptor is closed: a moment later.
    eventually(lambda: os.listdir(union.W / ".wh..wh.orph") == [], "the orphan goes")
    assert paths(union.W) == ({whiteout} if parent_too else {"d", whiteout})
    assert os.listdir(union.W / ".wh..wh.plnk") == []


def test_case_46_a_whiteout_in_a_sticky_directory(union: Union) -> None:
    fill(union.R, "t/mine", "t/foreign")
    (union.R / "t").chmod(0o1777)
    os.chown(union.R / "t/mine", 1000, 1000)
    os.chown(union.R / "t/foreign", 1001, 1001)
    top = union.start()
    union.as_user(1000, 1000, lambda: os.unlink("t/mine"))
    assert_whiteout(union.W, "t/mine")
    assert (union.W / "t/.wh.mine").lstat().st_uid != 1000
    with fails("EPERM"):
        union.as_user(1000, 1000, lambda: os.unlink("t/foreign"))
    # Creating it again removes a whiteout that belongs to somebody else.
    union.as_user(1000, 1000, lambda: os.close(os.open("t/mine", os.O_CREAT | os.O_WRONLY)))
    assert paths(union.W) == {"t", "t/mine"}
    assert (top / "t/mine").stat().st_uid == 1000


# Rename


def test_case_47_a_lower_file_is_renamed(union: Union) -> None:
    fill(union.R, "f")
    os.chown(union.R / "f", 1, 2)
    (union.R / "f").chmod(0o640)
    top = union.start()
    number = (top / "f").stat().st_ino
    os.rename(top / "f", top / "g")
    assert paths(union.W) == {"g", ".wh.f"}
    assert_whiteout(union.W, "f")
    assert (union.W / "g").read_text() == "R"
    status = (union.W / "g").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1, 2, 0o640)
    assert (top / "g").stat().st_ino == number
    assert listed(top) == ["g"]
    with fails("ENOENT"):
        os.stat(top / "f")


def test_case_48_an_upper_file_covers_a_lower_one(union: Union) -> None:
    fill(union.W, "a")
    fill(union.R, "b")
    top = union.start()
    assert (top / "b").read_text() == "R"
    os.rename(top / "a", top / "b")
    assert paths(union.W) == {"b"}
    assert (top / "b").read_text() == "W"
    assert listed(top) == ["b"]


def test_case_49_a_directory_with_lower_children_stays(union: Union) -> None:
    fill(union.R, "d/x")
    top = union.start()
    before = describe(top)
    with fails("EXDEV"):
        os.rename(top / "d", top / "e")
    assert paths(union.W) == set()
    assert differences(before, describe(top)) == []


def test_case_50_an_empty_lower_directory_is_renamed(union: Union) -> None:
    fill(union.R, "d/")
    (union.R / "d").chmod(0o750)
    top = union.start()
    os.rename(top / "d", top / "e")
    assert paths(union.W) == {"e", ".wh.d"}
    assert_whiteout(union.W, "d")
    assert stat.S_IMODE((union.W / "e").stat().st_mode) == 0o750
    assert listed(top) == ["e"]
    assert listed(top / "e") == []


def test_case_51_an_upper_directory_is_renamed(union: Union) -> None:
    fill(union.W, "d/a")
    top = union.start()
    number = (top / "d/a").stat().st_ino
    os.rename(top / "d", top / "e")
    assert paths(union.W) == {"e", "e/a"}
    assert (top / "e/a").stat().st_ino == number


def test_case_52_an_upper_directory_over_an_empty_lower_one(union: Union) -> None:
    fill(union.W, "d/a")
    fill(union.R, "d/")
    top = union.start()
    os.rename(top / "d", top / "e")
    assert_whiteout(union.W, "d")
    assert paths(union.W) == {"e", "e/a", ".wh.d"}
    assert listed(top) == ["e"]


def test_case_53_a_shadowed_lower_child_counts(union: Union) -> None:
    fill(union.W, "d/f")
    fill(union.R, "d/f")
    top = union.start()
    with fails("EXDEV"):
        os.rename(top / "d", top / "e")
    assert paths(union.W) == {"d", "d/f"}
    assert (top / "d/f").read_text() == "W"


def test_case_53_a_whited_out_one_does_not(union: Union) -> None:
    fill(union.W, "d/.wh.f", "d/own")
    fill(union.R, "d/f")
    top = union.start()
    os.rename(top / "d", top / "e")
    assert_whiteout(union.W, "d")
    assert listed(top) == ["e"]
    assert listed(top / "e") == ["own"]


def test_case_54_an_opaque_directory_is_renamed(union: Union) -> None:
    fill(union.W, "d/.wh..wh..opq", "d/a")
    fill(union.R, "d/x")
    top = union.start()
    os.rename(top / "d", top / "e")
    assert listed(top) == ["e"]
    assert listed(top / "e") == ["a"]
    assert_whiteout(union.W, "d")
    with fails("ENOENT"):
        os.stat(top / "d")


def test_case_55_a_directory_takes_a_removed_name(union: Union) -> None:
    fill(union.W, "d/a", ".wh.e")
    fill(union.R, "e/old")
    top = union.start()
    os.rename(top / "d", top / "e")
    assert (union.W / "e/.wh..wh..opq").exists()
    assert not (union.W / ".wh.e").exists()
    assert paths(union.W) == {"e", "e/a", "e/.wh..wh..opq"}
    assert listed(top / "e") == ["a"]
    with fails("ENOENT"):
        os.stat(top / "e/old")


def test_case_56_a_directory_onto_one_that_is_not_empty(union: Union) -> None:
    fill(union.W, "d/a")
    fill(union.R, "e/x")
    top = union.start()
    with fails("ENOTEMPTY"):
        os.rename(top / "d", top / "e")
    assert paths(union.W) == {"d", "d/a"}
    assert (top / "e/x").read_text() == "R"


def test_case_56_a_directory_onto_a_logically_empty_one(union: Union) -> None:
    fill(union.W, "d/a")
    fill(union.R, "e/x", "e/y")
    top = union.start()
    os.unlink(top / "e/x")
    os.unlink(top / "e/y")
    os.rename(top / "d", top / "e")
    union.settle()
    assert listed(top) == ["e"]
    assert listed(top / "e") == ["a"]
    assert paths(union.W) == {"e", "e/a", "e/.wh..wh..opq"}
    with fails("ENOENT"):
        os.stat(top / "e/x")


def test_case_57_rename_that_replaces_nothing(union: Union) -> None:
    fill(union.W, "g")
    fill(union.R, "f")
    top = union.start()
    for one, other in (("f", "g"), ("g", "f")):
        with fails("EEXIST"):
            renameat2(top / one, top / other, RENAME_NOREPLACE)
    assert paths(union.W) == {"g"}


def test_case_57_an_exchange_of_a_lower_and_an_upper_file(union: Union) -> None:
    fill(union.W, "g")
    fill(union.R, "f")
    top = union.start()
    numbers = [(top / name).stat().st_ino for name in "fg"]
    renameat2(top / "f", top / "g", RENAME_EXCHANGE)
    assert [(top / name).read_text() for name in "fg"] == ["W", "R"]
    assert [(top / name).stat().st_ino for name in "gf"] == numbers
    assert [(union.W / name).read_text() for name in "fg"] == ["W", "R"]
    assert paths(union.W) == {"f", "g"}


def test_case_57_a_whiteout_is_not_left_on_demand(union: Union) -> None:
    fill(union.R, "f")
    top = union.start()
    with fails("EINVAL"):
        renameat2(top / "f", top / "g", RENAME_WHITEOUT)
    assert paths(union.W) == set()


def test_case_76_the_permissions_that_show_are_those_that_count(union: Union) -> None:
    """Those of the lower directory, which nobody sees any more, do not."""
    fill(union.R, "d/x")
    os.chown(union.R / "d", 4711, 4711)
    (union.R / "d").chmod(0o700)
    top = union.start()
    with fails("EACCES"):
        union.as_user(1234, 1234, lambda: os.listdir("d"))
    (top / "d").chmod(0o755)
    assert union.as_user(1234, 1234, lambda: os.listdir("d")) == ["x"]
    assert stat.S_IMODE((union.R / "d").stat().st_mode) == 0o700
