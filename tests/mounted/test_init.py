"""What is agreed on with the kernel when a union is mounted, and what that is good for.

By default the daemon negotiates itself; ``init=pyfuse3`` leaves it to libfuse, which is also what
happens when the former fails. Everything must work both ways; what is only better one way is said.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounting import Union
from tests.support.oracle import Oracle
from tests.support.overlay_trees import ANYBODY, acl
from tests.support.trees import assert_whiteout, fill
from unionfs.fuse import serve
from unionfs.fuse.handshake import HandshakeError, Introduction

BOTH = pytest.mark.parametrize("init", ["own", "pyfuse3"])
PROFILES = pytest.mark.parametrize("profile", ["aufs", "driver"])
MIB = 1 << 20


def everyday(union: Union, options: str) -> None:
    fill(union.R, "f", "d/x", "gone")
    (union.R / "large").write_bytes(bytes(range(256)) * (3 * MIB // 256))
    os.symlink("f", union.R / "link")
    top = union.start(options=options)
    assert sorted(os.listdir(top)) == ["d", "f", "gone", "large", "link"]
    assert (top / "link").read_text() == "R"
    with (top / "large").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    assert (top / "large").read_bytes()[-2:] == b"\xfe!"
    (top / "f").write_text("W")
    assert (top / "link").read_text() == "W"
    os.unlink(top / "gone")
    assert_whiteout(union.W, "gone")
    (top / "d/y").write_text("new")
    os.rename(top / "d/x", top / "d/z")
    assert sorted(os.listdir(top / "d")) == ["y", "z"]


@BOTH
@PROFILES
def test_everyday_work(union: Union, init: str, profile: str) -> None:
    everyday(union, f"init={init},profile={profile}")


@pytest.mark.parametrize("how", ["the kernel's INIT", "libfuse refuses", "libfuse does not answer"])
def test_libfuse_negotiates_when_we_cannot(
    union: Union, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mount is made a second time, and nothing of the first is left."""

    def fail(*_: object) -> None:
        raise HandshakeError(71, "not understood")

    if how == "the kernel's INIT":
        monkeypatch.setattr(serve, "negotiate", fail)
    elif how == "libfuse refuses":
        monkeypatch.setattr(Introduction, "finish", lambda _: None)
    else:
        monkeypatch.setattr(serve, "_INTRODUCTION_S", 0.2)
        monkeypatch.setattr(serve, "Introduction", Silent)
    union.forked = True  # with what is patched
    union.expect_log("INIT is left to libfuse")
    everyday(union, "udba=none")
    lines = [line for line in mountinfo() if f" {union.mount} " in line]
    assert len(lines) == 1


class Silent(Introduction):
    """An introduction of which libfuse hears nothing."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]  # passed on as they came
        os.read(self.fd, 4096)
        self._end, theirs = os.pipe()
        os.dup2(self._end, self.fd)
        self._theirs = theirs


def mountinfo() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


def test_below_a_default_acl_the_umask_does_not_count(oracle: Oracle) -> None:
    """Only with our own negotiation: libfuse leaves the umask to the kernel, which applies it."""
    anybody = acl((0x01, 7, ANYBODY), (0x04, 7, ANYBODY), (0x20, 7, ANYBODY))

    def build(place: Path) -> None:
        for name in ("with", "with/sub", "without"):
            (place / name).mkdir()
        os.setxattr(place / "with", "system.posix_acl_default", anybody)

    def scenario(place: Path) -> list[int]:
        before = os.umask(0o077)
        modes = []
        for name in ("with", "without"):
            (place / name / "f").touch()
            (place / name / "d").mkdir()
            os.mkfifo(place / name / "p")
            os.mknod(place / name / "n", 0o100666)
            modes += [(place / name / it).stat().st_mode & 0o7777 for it in "fdpn"]
        (place / "with/d/g").touch()
        os.umask(before)
        return [*modes, (place / "with/d/g").stat().st_mode & 0o7777]

    oracle.start(build, options="acl")
    by_acl, by_umask = [0o666, 0o777, 0o666, 0o666], [0o600, 0o700, 0o600, 0o600]
    assert oracle.same(scenario) == [*by_acl, *by_umask, 0o666]


def requests(union: Union, action: Callable[[], object]) -> int:
    """Return how many bytes of requests an action costs."""
    before = union.bytes_read()
    action()
    return union.bytes_read() - before


@PROFILES
def test_the_text_of_a_link_is_asked_for_once(union: Union, profile: str) -> None:
    """But where others may put another link in its place, each time."""
    os.symlink("old", union.R / "link")
    top = union.start(options=f"profile={profile}")
    assert os.readlink(top / "link") == "old"
    cost = requests(union, lambda: os.readlink(top / "link"))
    assert (cost == 0) is (profile == "driver")


def test_another_link_at_the_same_place(union: Union) -> None:
    """The branch's filesystem may give the new one the inode of the old one."""
    os.symlink("old", union.W / "link")
    top = union.start(options="profile=aufs")
    for text in ("new", "newer", "newest"):
        os.unlink(union.W / "link")
        os.symlink(text, union.W / "link")
        assert os.readlink(top / "link") == text
    os.unlink(top / "link")
    os.symlink("last", top / "link")
    assert os.readlink(top / "link") == "last"
    assert os.lstat(top / "link").st_size == 4


def test_another_link_made_through_the_mount(union: Union) -> None:
    top = union.start(options="profile=driver")
    for text in ("one", "three", "seven", "fifteen"):
        os.symlink(text, top / "link")
        assert os.readlink(top / "link") == text
        os.unlink(top / "link")


def test_what_was_written_is_not_read_again(union: Union) -> None:
    """Where nobody else changes files, a new mtime is no reason to drop what is cached."""
    top = union.start(options="profile=driver")
    with (top / "f").open("w+b", buffering=0) as file:
        file.write(bytes(MIB))
        os.stat(file.fileno())
        file.seek(0)

        def again() -> None:
            file.write(b"x")
            os.stat(file.fileno())
            assert len(os.pread(file.fileno(), MIB, 0)) == MIB

        again()
        read = int(io(union)["wchar"])
        again()
        assert int(io(union)["wchar"]) - read < 4096 * 4


def io(union: Union) -> dict[str, str]:
    text = Path(f"/proc/{union.pid}/io").read_text()
    return dict(line.split(": ") for line in text.splitlines())


def test_what_others_have_written_is_read_again(union: Union) -> None:
    """With udba=reval a file that is held open shows what was written on its branch."""
    fill(union.W, "f")
    top = union.start(options="profile=aufs")
    with (top / "f").open("rb", buffering=0) as file:
        assert file.read() == b"W"
        (union.W / "f").write_text("changed")
        os.stat(top / "f")
        assert os.pread(file.fileno(), 99, 0) == b"changed"
