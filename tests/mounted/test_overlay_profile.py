"""What the profile ``overlay`` does otherwise than ``aufs``, row by row of the table in the docs.

The acceptance cases that mean the same in both run in both (``test_acceptance_*.py``); those marked
``differs_in_overlay`` there have their counterpart here. How engines spell such a mount, its flags
and its second mount are in ``test_overlay_spelling.py``.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from tests.support.directories import listed
from tests.support.mounting import Union
from tests.support.overlay_trees import ANYBODY, acl
from tests.support.trees import assert_whiteout, fails, fill, paths, temporaries

both = pytest.mark.parametrize("spelling", ["br", "overlay"])
overlay = pytest.mark.parametrize("spelling", ["overlay"])

# user 1000 may read, others, the group included, may nothing
READABLE = acl(
    (0x01, 6, ANYBODY), (0x02, 4, 1000), (0x04, 0, ANYBODY), (0x10, 4, ANYBODY), (0x20, 0, ANYBODY)
)


@pytest.fixture(autouse=True)
def no_command(union: Union) -> None:
    """Other tests start the command itself; here that would take most of the time."""
    union.forked = True


# A whiteout beside its entry (case 15)


@overlay
@pytest.mark.parametrize("udba", ["reval", "none"])
def test_a_whiteout_beside_its_entry_hides_what_is_lower(union: Union, udba: str) -> None:
    fill(union.W, "f", ".wh.f", "g", "d/own", ".wh.d")
    fill(union.R, "f", "d/lower")
    union.branch_is_flawed("that is the case")
    top = union.start(options=f"udba={udba}")
    assert (top / "f").read_text() == "W"
    assert sorted(listed(top)) == ["d", "f", "g"]
    assert listed(top / "d") == ["own"]
    with fails("ENOENT"):
        os.stat(top / "d/lower")
    # Once the entry is removed, the whiteout is what is left.
    os.unlink(top / "f")
    assert sorted(listed(top)) == ["d", "g"]
    assert_whiteout_of(union.W, "f")


def assert_whiteout_of(branch: Path, name: str) -> None:
    assert stat.S_ISREG((branch / f".wh.{name}").lstat().st_mode)
    assert not (branch / name).exists()


@overlay
def test_so_it_is_on_a_lower_branch(union: Union) -> None:
    fill(union.branch("T"), "d/")
    fill(union.branch("M"), "d/f", "d/.wh.f", "d/e/own", "d/.wh.e")
    fill(union.R, "d/f", "d/e/lower")
    top = union.start("T=rw", "M=ro+wh", "R=ro+wh")
    assert (top / "d/f").read_text() == "M"
    assert sorted(listed(top / "d")) == ["e", "f"]
    assert listed(top / "d/e") == ["own"]
    (top / "d/f").write_text("changed")
    os.unlink(top / "d/f")
    assert listed(top / "d") == ["e"]
    assert_whiteout(union.branch("T"), "d/f")


# Forms and marks


@both
def test_marks_in_the_form_of_overlayfs(union: Union, spelling: str) -> None:
    fill(union.R, "f", "d/lower", "again")
    fill(union.branch("M"), "d/middle")
    for name in ("f", "again"):
        os.mknod(union.branch("M") / name, stat.S_IFCHR)
    os.setxattr(union.branch("M") / "d", "trusted.overlay.opaque", b"y")
    top = union.start("W=rw", "M=ro+wh", "R=ro+wh")
    if spelling == "br":
        assert stat.S_ISCHR((top / "f").lstat().st_mode)
        assert sorted(listed(top / "d")) == ["lower", "middle"]
        return
    assert sorted(listed(top)) == ["d"]
    with fails("ENOENT"):
        os.stat(top / "f")
    assert listed(top / "d") == ["middle"]
    # What is written is of aufs.
    os.unlink(top / "d/middle")
    assert_whiteout(union.W, "d/middle")
    (top / "again").mkdir()
    assert listed(top / "again") == []
    assert paths(union.W) == {"d", "d/.wh.middle", "again"}


@both
@pytest.mark.parametrize("form", ["aufs", "overlay"])
def test_an_opaque_mark_at_the_top_of_a_branch(union: Union, spelling: str, form: str) -> None:
    middle = union.branch("M")
    fill(middle, "m")
    fill(union.R, "f")
    if form == "aufs":
        fill(middle, ".wh..wh..opq")
    else:
        os.setxattr(middle, "trusted.overlay.opaque", b"y")
    top = union.start("W=rw", "M=ro+wh", "R=ro+wh")
    assert listed(top) == (["m"] if spelling == "overlay" else ["m", "f"])
    assert os.path.exists(top / "f") == (spelling == "br")


# What the kernel may remember


@both
def test_only_a_trusted_branch_is_not_asked_again(union: Union, spelling: str) -> None:
    fill(union.R, "f", "d/g")
    top = union.start()

    def look() -> None:
        for name in ("f", "d/g"):
            os.stat(top / name)
        with fails("ENOENT"):
            os.stat(top / "absent")

    look()
    before = union.bytes_read()
    for _ in range(10):
        look()
    asked = union.bytes_read() != before
    assert asked == (spelling == "br")


# Removing


@overlay
def test_many_whiteouts_are_gone_when_rmdir_returns(union: Union) -> None:
    names = [f"d/x{number}" for number in range(100)]
    fill(union.R, *names)
    top = union.start()
    for name in names:
        os.unlink(top / name)
    os.rmdir(top / "d")
    assert temporaries(union.W) == set()
    assert paths(union.W) == {".wh.d"}


# Permission


@both
@pytest.mark.parametrize(
    ("option", "counts"),
    [("", ["overlay"]), ("acl", ["br", "overlay"]), ("noacl", [])],
    ids=["by profile", "acl", "noacl"],
)
def test_access_control_lists(union: Union, spelling: str, option: str, counts: list[str]) -> None:
    fill(union.R, "f", "g")
    for name in ("f", "g"):
        os.setxattr(union.R / name, "system.posix_acl_access", READABLE)
    top = union.start(options=option)
    (top / "g").write_text("copied up")
    assert os.getxattr(union.W / "g", "system.posix_acl_access") == READABLE
    for name in ("f", "g"):
        shown = "system.posix_acl_access" in os.listxattr(top / name)
        who = [uid for uid in (0, 1000, 1001) if readable(union, name, uid)]
        assert (shown, who) == ((True, [0, 1000]) if spelling in counts else (False, [0]))


def readable(union: Union, name: str, uid: int) -> bool:
    try:
        union.as_user(uid, uid, lambda: os.close(os.open(name, os.O_RDONLY)))
    except PermissionError:
        return False
    return True


# Flags of the mount


@both
def test_devices_work_only_when_asked_for(union: Union, spelling: str) -> None:
    os.mknod(union.R / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    top = union.start()
    if spelling == "overlay":
        with fails("EACCES"):
            os.open(top / "null", os.O_WRONLY)
    else:
        os.close(os.open(top / "null", os.O_WRONLY))
    flags = os.statvfs(top).f_flag
    assert bool(flags & os.ST_NODEV) == bool(flags & os.ST_NOATIME) == (spelling == "overlay")
    assert not flags & os.ST_NOSUID
    union.stop()
    union.start(options="dev,atime")
    os.close(os.open(top / "null", os.O_WRONLY))
    assert not os.statvfs(top).f_flag & (os.ST_NODEV | os.ST_NOATIME)
