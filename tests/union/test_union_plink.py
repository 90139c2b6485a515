"""Pseudo-links: hard links over copy-up and mounts (``unionfs/union/plink.py``, aufs.md 6.5)."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.branches import fingerprint
from tests.support.cores import Core
from tests.support.trees import fill, paths
from unionfs import syscalls
from unionfs.union.core import Change, run_now
from unionfs.union.plink import tag_of


def entries(core: Core) -> list[str]:
    return sorted(os.listdir(core.base / "W/.wh..wh.plnk"))


@pytest.fixture
def linked(core: Core) -> Core:
    """R:a, R:b and R:d/c are one file."""
    fill(core.branch("R"), "a", "d/x")
    os.link(core.base / "R/a", core.base / "R/b")
    os.link(core.base / "R/a", core.base / "R/d/c")
    core.start()
    return core


def check(core: Core, names: dict[str, bytes], nlink: int) -> None:
    """All names are one file with this content and count, now and after a fresh start."""
    for _ in range(2):
        assert {name: core.read(name) for name in names} == names
        assert {core.nlink(name) for name in names} == {nlink}
        assert len({core.node(name).number for name in names}) == 1
        # Also when the name that was copied up is not the first that is looked up.
        core.start()
        for name in reversed(names):
            core.node(name)


def test_all_names_show_the_copy(linked: Core) -> None:
    linked.write("b", b"new")
    check(linked, {"a": b"new", "b": b"new", "d/c": b"new"}, 3)
    assert paths(linked.base / "W") == {"b"}
    assert len(entries(linked)) == 1


def test_one_copy_for_all_names(linked: Core) -> None:
    linked.write("b", b"12")
    linked.write("d/c", b"3", 2)
    linked.start()
    linked.write("a", b"4", 3)
    check(linked, {"a": b"1234", "b": b"1234", "d/c": b"1234"}, 3)
    assert paths(linked.base / "W") == {"b"}


def test_unlinking_names_one_by_one(linked: Core) -> None:
    linked.write("b", b"new")
    linked.unlink("b")
    check(linked, {"a": b"new", "d/c": b"new"}, 2)
    linked.unlink("a")
    check(linked, {"d/c": b"new"}, 1)
    linked.unlink("d/c")
    assert linked.names() == ["d"]
    assert linked.names("d") == ["x"]
    assert entries(linked) == []
    linked.start()
    assert linked.names() == ["d"]


def test_unlinking_counts_before_anything_is_copied(linked: Core) -> None:
    linked.unlink("a")
    check(linked, {"b": b"R", "d/c": b"R"}, 2)
    linked.write("d/c", b"X")
    check(linked, {"b": b"X", "d/c": b"X"}, 2)
    linked.unlink("d/c")
    check(linked, {"b": b"X"}, 1)
    linked.unlink("b")
    assert entries(linked) == []


def test_renaming_a_name_that_is_still_below(linked: Core) -> None:
    linked.write("b", b"new")
    linked.rename("a", "d/moved")
    check(linked, {"d/moved": b"new", "b": b"new", "d/c": b"new"}, 3)
    assert "a" not in linked.names()


def test_linking_a_file_of_the_lower_branch(linked: Core) -> None:
    linked.link("d/c", "new")
    check(linked, {"a": b"R", "b": b"R", "d/c": b"R", "new": b"R"}, 4)
    assert paths(linked.base / "W") == {"new"}
    linked.write("a", b"X")
    check(linked, {"a": b"X", "b": b"X", "d/c": b"X", "new": b"X"}, 4)


def test_replacing_names(linked: Core) -> None:
    linked.write("b", b"new")
    linked.create("other", b"other")
    linked.rename("other", "a")
    check(linked, {"b": b"new", "d/c": b"new"}, 2)
    linked.rename("d/c", "a")
    check(linked, {"b": b"new", "a": b"new"}, 2)


def test_renaming_one_name_onto_another_does_nothing(linked: Core) -> None:
    linked.rename("a", "b")
    check(linked, {"a": b"R", "b": b"R", "d/c": b"R"}, 3)
    linked.write("a", b"X")
    linked.rename("b", "a")
    check(linked, {"a": b"X", "b": b"X", "d/c": b"X"}, 3)


def test_no_names_left_but_open(linked: Core) -> None:
    handle = run_now(linked.union.open(linked.file("a"), os.O_RDWR))
    for name in ("a", "b", "d/c"):
        linked.unlink(name)
    run_now(linked.union.write(handle, 0, b"X"))
    assert bytes(linked.union.read(handle, 0, 9)) == b"X"  # type: ignore[arg-type]
    assert linked.union.getattr(handle.node).nlink == 0
    linked.union.release(handle)
    assert entries(linked) == []
    assert paths(linked.base / "W") == {".wh.a", ".wh.b", "d", "d/.wh.c"}


def test_written_when_only_an_unknown_name_is_left(linked: Core) -> None:
    """The name it was opened by is gone; another exists that was never looked up."""
    handle = run_now(linked.union.open(linked.file("a"), os.O_RDWR))
    linked.unlink("a")
    run_now(linked.union.write(handle, 0, b"X"))
    linked.union.release(handle)
    check(linked, {"b": b"X", "d/c": b"X"}, 2)
    assert paths(linked.base / "W") == {".wh.a"}
    linked.unlink("b")
    linked.unlink("d/c")
    assert entries(linked) == []


def test_without_plink_a_copy_breaks_the_link(linked: Core) -> None:
    linked.start(options="volatile,noplink")
    linked.write("b", b"new")
    assert (linked.read("a"), linked.read("b"), linked.read("d/c")) == (b"R", b"new", b"R")
    assert linked.node("a") is not linked.node("b")
    assert linked.node("a") is linked.node("d/c")
    assert len({linked.node("a").number, linked.node("b").number}) == 2


def test_special_files_are_linked_too(core: Core) -> None:
    os.mkfifo(core.branch("R") / "a")
    os.link(core.base / "R/a", core.base / "R/b")
    os.symlink("text", core.base / "R/s")
    os.link(core.base / "R/s", core.base / "R/t", follow_symlinks=False)
    core.start()
    run_now(core.union.setattr(core.node("a"), Change(mode=0o606)))
    run_now(core.union.setattr(core.node("s"), Change(uid=12)))
    for _ in range(2):
        assert core.union.getattr(core.node("b")).status.st_mode & 0o777 == 0o606
        assert core.union.getattr(core.node("t")).status.st_uid == 12
        assert core.nlink("b") == core.nlink("t") == 2
        core.start()


def test_two_branches_with_equal_inode_numbers(
    core: Core, mount_tmpfs: Callable[[str], Path]
) -> None:
    """Two fresh filesystems count their inodes alike: the entries have to tell them apart."""
    one, two = mount_tmpfs("R1"), mount_tmpfs("R2")
    for place, names in ((one, "ab"), (two, "pq")):
        (place / names[0]).write_text(place.name)
        os.link(place / names[0], place / names[1])
    assert (one / "a").stat().st_ino == (two / "p").stat().st_ino
    before = fingerprint(one), fingerprint(two)
    core.start("W=rw", "R1=ro+wh", "R2=ro+wh")
    assert core.node("a") is not core.node("p")
    core.write("a", b"1111")
    check(core, {"a": b"1111", "b": b"1111"}, 2)
    check(core, {"p": b"R2", "q": b"R2"}, 2)
    core.write("q", b"2222")
    check(core, {"a": b"1111", "b": b"1111"}, 2)
    check(core, {"p": b"2222", "q": b"2222"}, 2)
    core.unlink("a")
    check(core, {"b": b"1111"}, 1)
    core.unlink("p")
    check(core, {"q": b"2222"}, 1)
    core.stop()
    assert (fingerprint(one), fingerprint(two)) == before


def test_an_inode_used_again_is_not_mistaken(core: Core) -> None:
    """The lower branch was changed while the union was down."""
    lower = core.branch("R")
    fill(lower, "a")
    os.link(lower / "a", lower / "b")
    core.start()
    core.write("a", b"copy")
    core.stop()
    inode = (lower / "b").stat().st_ino
    (lower / "a").unlink()
    (lower / "b").unlink()
    for attempt in range(64):
        (lower / f"n{attempt}").write_text("new")
        if (lower / f"n{attempt}").stat().st_ino == inode:
            break
    os.rename(lower / f"n{attempt}", lower / "b")
    core.start()
    assert core.read("b") == b"new"
    assert core.read("a") == b"copy"


def test_foreign_entries_are_left_alone(linked: Core) -> None:
    """What aufs itself or a stranger has left in the directory says nothing here."""
    linked.stop()
    place = linked.base / "W/.wh..wh.plnk"
    inode = (linked.base / "R/a").stat().st_ino
    for name in (f"{inode}.{inode}", "nonsense", f"1.{inode}.0123456789abcdef.5", f"1.{inode}.x.1"):
        (place / name).write_text("foreign")
    (place / f"2.{inode}.0123456789abcdef.5").mkdir()
    before = entries(linked)
    linked.start()
    check(linked, {"a": b"R", "b": b"R", "d/c": b"R"}, 3)
    assert entries(linked) == before


def test_a_copy_that_somebody_removed_leaves_the_lower_file(linked: Core) -> None:
    linked.write("b", b"new")
    linked.stop()
    (linked.base / "W/.wh..wh.plnk" / entries(linked)[0]).unlink()
    (linked.base / "W/b").unlink()
    linked.start()
    assert {linked.read(name) for name in ("a", "b", "d/c")} == {b"R"}


def test_a_writable_branch_that_has_become_a_layer(linked: Core) -> None:
    """What was copied up there stays linked, below a new writable branch."""
    linked.write("b", b"new")
    linked.unlink("a")
    linked.stop()
    before = fingerprint(linked.base / "W")
    linked.start("W2=rw", "W=ro+wh", "R=ro+wh")
    check(linked, {"b": b"new", "d/c": b"new"}, 2)
    linked.write("d/c", b"newer")
    check(linked, {"b": b"newer", "d/c": b"newer"}, 2)
    linked.unlink("b")
    check(linked, {"d/c": b"newer"}, 1)
    linked.stop()
    assert fingerprint(linked.base / "W") == before


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFIFO])
def test_a_name_that_only_a_layer_below_links_to_a_copy(core: Core, kind: int) -> None:
    """The name lies on R, the copy on W, and what W2 holds is no more than a count."""
    os.mknod(core.branch("R") / "a", kind | 0o644)
    core.start()
    core.link("a", "b")
    core.stop()
    core.start("W2=rw", "W=ro+wh", "R=ro+wh")
    core.unlink("b")
    for _ in range(2):
        assert core.names() == ["a"]
        assert core.nlink("a") == 1
        run_now(core.union.setattr(core.file("a"), Change(mode=0o600)))
        assert os.listdir(core.branch("W2")).count("a") == 1
        core.start()


def test_the_tag_tells_branches_apart_and_not_names(
    core: Core, mount_tmpfs: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As when everything is made within one tick of the clock that births are taken from.
    monkeypatch.setattr(syscalls, "statx_birth", lambda dir_fd, name: 1)
    for place in (mount_tmpfs("R1"), mount_tmpfs("R2")):
        (place / "a").touch()
        os.link(place / "a", place / "b")
    union = core.start("W=rw", "R1=ro+wh", "R2=ro+wh")
    one, two = (branch.root for branch in union.branches[1:])
    assert tag_of(one, b"a") == tag_of(one, b"b")
    assert tag_of(one, b"a") != tag_of(two, b"a")
