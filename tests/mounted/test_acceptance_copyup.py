"""Acceptance cases 19 to 32: the first change copies a file up, and only a change does.

The default union is [W=rw, R=ro+wh] (aufs.md 11). Cases 19 to 22 are run on a plain directory too,
which says what results and errnos a program expects.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.directories import listed
from tests.support.mounting import Union
from tests.support.processes import as_user, eventually, refuse_setxattr
from tests.support.trees import age, fails, fill, outcome, paths, temporaries

pytestmark = pytest.mark.both_spellings

MIB = 1 << 20


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A plain directory: the oracle."""
    path = tmp_path / "plain"
    path.mkdir()
    return path


def worn(path: Path) -> Path:
    """Give a file the attributes of case 19."""
    os.chown(path, 1001, 1002)
    path.chmod(0o640)
    os.setxattr(path, "user.k", b"value")
    age(path)
    return path


def test_case_19_append_one_byte(union: Union, plain: Path) -> None:
    fill(union.R, "d/f")
    fill(plain, "f")
    (plain / "f").write_text("R")
    worn(union.R / "d/f")
    worn(plain / "f")
    parent_mtime = age(union.R / "d")
    top = union.start()

    def append(path: Path) -> tuple[object, ...]:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        try:
            written = os.write(fd, b"+")
            after = os.fstat(fd)
        finally:
            os.close(fd)
        status = path.stat()
        assert after.st_ino == status.st_ino
        return (
            written,
            path.read_bytes(),
            status.st_size,
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_nlink,
            os.getxattr(path, "user.k"),
        )

    expected = append(plain / "f")
    assert append(top / "d/f") == expected
    # On the branch it is the same file with the same attributes.
    copy = union.W / "d/f"
    status = copy.stat()
    assert (copy.read_bytes(), status.st_mode & 0o7777) == (b"R+", 0o640)
    assert (status.st_uid, status.st_gid, os.getxattr(copy, "user.k")) == (1001, 1002, b"value")
    assert os.listxattr(copy) == ["user.k"]
    assert (union.R / "d/f").read_text() == "R"
    assert (union.W / "d").stat().st_mtime_ns == parent_mtime


def test_case_20_opening_for_writing_copies_nothing(union: Union, plain: Path) -> None:
    fill(union.R, "f")
    fill(plain, "f")
    top = union.start()

    def open_and_close(path: Path) -> tuple[object, ...]:
        before = path.stat()
        for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_APPEND):
            os.close(os.open(path, flags))
        after = path.stat()
        return (
            before.st_ino == after.st_ino,
            before.st_mtime_ns == after.st_mtime_ns,
            outcome(os.close, os.open(path, os.O_RDWR)),
            outcome(os.open, path, os.O_RDWR | os.O_DIRECTORY),
            outcome(os.open, path, os.O_CREAT | os.O_EXCL | os.O_RDWR),
            outcome(os.open, path / "below", os.O_RDWR),
            outcome(os.open, path.with_name("absent"), os.O_RDWR),
        )

    expected = open_and_close(plain / "f")
    assert open_and_close(top / "f") == expected
    assert paths(union.W) == set()


def test_case_21_a_reading_descriptor_follows(union: Union, plain: Path) -> None:
    fill(union.R, "f")
    (plain / "f").write_text("R")
    top = union.start()

    def write_beside(path: Path) -> tuple[object, ...]:
        reader = os.open(path, os.O_RDONLY)
        try:
            assert os.pread(reader, 10, 0) == b"R"
            number = os.fstat(reader).st_ino
            writer = os.open(path, os.O_RDWR)
            try:
                written = os.pwrite(writer, b"new bytes", 0)
                seen = os.pread(reader, 100, 0)
                refused = outcome(os.pwrite, reader, b"x", 0)
            finally:
                os.close(writer)
            status = os.fstat(reader)
            return written, seen, refused, status.st_size, status.st_ino == number
        finally:
            os.close(reader)

    expected = write_beside(plain / "f")
    assert expected == (9, b"new bytes", "EBADF", 9, True)
    assert write_beside(top / "f") == expected
    assert (union.W / "f").read_text() == "new bytes"
    assert (union.R / "f").read_text() == "R"


def _append(path: Path) -> None:
    with path.open("a") as file:
        file.write("+")


CHANGES: dict[str, Callable[[Path], object]] = {
    "chmod": lambda path: path.chmod(0o600),
    "write": _append,
}


@pytest.mark.parametrize("udba", ["reval", "none"])
@pytest.mark.parametrize("change", ["chmod", "write"])
def test_case_22_numbers_survive_copy_up(union: Union, plain: Path, change: str, udba: str) -> None:
    fill(union.R, "a/b/f", "a/other")
    fill(plain, "a/b/f", "a/other")
    top = union.start(options=f"udba={udba}")

    def numbers(start: Path) -> list[int]:
        return [os.lstat(start / name).st_ino for name in ("", "a", "a/b", "a/b/f", "a/other")]

    def stays(start: Path) -> tuple[object, ...]:
        before = numbers(start)
        CHANGES[change](start / "a/b/f")
        fd = os.open(start / "a/b/f", os.O_RDONLY)
        by_descriptor = os.fstat(fd).st_ino
        os.close(fd)
        after = numbers(start)
        return before == after, len(set(before)) == len(before), by_descriptor == before[3]

    expected = stays(plain)
    assert stays(top) == expected == (True, True, True)
    assert paths(union.W) == {"a", "a/b", "a/b/f"}


def test_case_23_parents_are_copied_up_bare(union: Union) -> None:
    fill(union.R, "a/b/c/f", "a/b/c/sibling", "a/other", "a/b/more/")
    expected = {}
    for index, name in enumerate(("a/b/c", "a/b", "a")):
        os.chown(union.R / name, 10 + index, 20 + index)
        os.setxattr(union.R / name, "user.k", name.encode())
        (union.R / name).chmod(0o751 + index)
        expected[name] = (0o751 + index, 10 + index, 20 + index, age(union.R / name))
    top = union.start()
    (top / "a/b/c/f").chmod(0o600)
    assert paths(union.W) == {"a", "a/b", "a/b/c", "a/b/c/f"}
    for name, attributes in expected.items():
        status = (union.W / name).stat()
        assert (
            stat.S_IMODE(status.st_mode),
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
        ) == attributes
        assert os.getxattr(union.W / name, "user.k") == name.encode()


def test_case_24_holes_stay_holes(union: Union) -> None:
    with (union.R / "f").open("wb") as file:
        file.seek(512 * MIB)
        file.write(b"x" * 4096)
        file.truncate(1024 * MIB)
    top = union.start()
    os.utime(top / "f")
    source, copy = (union.R / "f").stat(), (union.W / "f").stat()
    assert copy.st_size == 1024 * MIB
    assert abs(copy.st_blocks - source.st_blocks) <= 16
    with (union.W / "f").open("rb") as file:
        file.seek(512 * MIB - 1)
        assert file.read(4098) == b"\0" + b"x" * 4096 + b"\0"


@pytest.mark.parametrize("way", ["truncate", "ftruncate"])
def test_case_25_truncation_copies_what_is_kept(union: Union, way: str) -> None:
    (union.R / "f").write_bytes(b"0123456789abcdef")
    os.truncate(union.R / "f", 100 * MIB)
    top = union.start()
    os.stat(top / "f")
    before = union.bytes_read()
    if way == "truncate":
        os.truncate(top / "f", 10)
    else:
        fd = os.open(top / "f", os.O_RDWR)
        os.ftruncate(fd, 10)
        os.close(fd)
    assert union.bytes_read() - before < MIB
    assert (union.W / "f").read_bytes() == b"0123456789"
    assert (top / "f").read_bytes() == b"0123456789"


def test_case_25_o_trunc_copies_nothing(union: Union) -> None:
    with (union.R / "f").open("wb") as file:
        for _ in range(20):
            file.write(os.urandom(MIB))
    (union.R / "f").chmod(0o640)
    top = union.start()
    before = union.bytes_read()
    os.close(os.open(top / "f", os.O_WRONLY | os.O_TRUNC))
    assert union.bytes_read() - before < MIB
    status = (union.W / "f").stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (0, 0o640)


def test_case_26_a_symlink_is_copied_as_such(union: Union) -> None:
    fill(union.R, "target")
    (union.R / "link").symlink_to("target")
    top = union.start()
    os.chown(top / "link", 7, 8, follow_symlinks=False)
    assert os.readlink(union.W / "link") == "target"
    status = (union.W / "link").lstat()
    assert (status.st_uid, status.st_gid) == (7, 8)
    assert paths(union.W) == {"link"}
    assert (top / "target").stat().st_uid == 0


def test_case_27_an_xattr_that_cannot_be_kept_fails_the_copy(union: Union) -> None:
    fill(union.R, "f")
    os.setxattr(union.R / "f", "user.k", b"value")
    union.preexec = refuse_setxattr
    union.no_comparison("the second daemon would not run under the same restrictions")
    top = union.start()
    with fails("EOPNOTSUPP"):
        (top / "f").chmod(0o600)
    assert paths(union.W) == set()
    assert os.getxattr(top / "f", "user.k") == b"value"


def test_case_27_unless_the_branch_says_otherwise(union: Union) -> None:
    fill(union.R, "f", "g")
    os.setxattr(union.R / "f", "user.k", b"value")
    os.setxattr(union.R / "g", "trusted.k", b"value")
    union.preexec = refuse_setxattr
    union.no_comparison("the second daemon would not run under the same restrictions")
    top = union.start("W=rw+icexusr", "R=ro+wh")
    (top / "f").chmod(0o600)
    assert stat.S_IMODE((union.W / "f").stat().st_mode) == 0o600
    assert os.listxattr(union.W / "f") == []
    with fails("EOPNOTSUPP"):  # of another class
        (top / "g").chmod(0o600)
    assert paths(union.W) == {"f"}


@pytest.mark.parametrize("udba", ["reval", "none"])
def test_case_28_a_full_branch(union: Union, udba: str) -> None:
    (union.R / "f").write_bytes(b"R" * 3 * MIB)
    union.tmpfs("W", "2m")
    union.expect_log("a write to /f failed: .*No space left on device")
    top = union.start(options=f"udba={udba}")
    fd = os.open(top / "f", os.O_RDWR)
    try:
        for _ in range(2):
            with fails("ENOSPC"):
                os.pwrite(fd, b"new", 0)
            assert os.pread(fd, 10, 0) == b"R" * 10
        with fails("ENOSPC"):
            (top / "f").chmod(0o600)
        with fails("ENOSPC"):
            os.truncate(top / "f", 5 * MIB // 2)
    finally:
        os.close(fd)
    assert (top / "f").read_bytes() == b"R" * 3 * MIB
    assert paths(union.W) == set()
    # What fits works, and the union is as usable as before.
    os.truncate(top / "f", 1000)
    assert (union.W / "f").read_bytes() == b"R" * 1000


@pytest.mark.parametrize("udba", ["reval", "none"])
def test_a_full_branch_and_a_shared_map(union: Union, udba: str) -> None:
    """Nobody hears of the error after the file was closed; but nobody may read what is lost."""
    (union.R / "f").write_bytes(b"R" * 3 * MIB)
    union.tmpfs("W", "1m")
    union.expect_log("a write to /f failed: .*No space left on device")
    top = union.start(options=f"udba={udba}")
    reader = os.open(top / "f", os.O_RDONLY)
    for _ in range(2):
        fd = os.open(top / "f", os.O_RDWR)
        with mmap.mmap(fd, 0) as mapping:
            os.close(fd)
            mapping[0:3] = b"new"
            mapping[2 * MIB : 2 * MIB + 3] = b"new"
        assert (top / "f").read_bytes() == b"R" * 3 * MIB
        assert os.pread(reader, 3, 0) == b"RRR"
    os.close(reader)
    assert "a write to /f failed" in union.log.read_text()
    assert paths(union.W) == set()


def test_case_29_setuid_over_copy_up(union: Union) -> None:
    for name in ("by_chmod", "by_root", "by_owner", "by_xattr"):
        fill(union.R, name)
        os.chown(union.R / name, 1000, 1000)
        (union.R / name).chmod(0o6755)
    top = union.start()
    (top / "by_chmod").chmod(0o4711)
    assert stat.S_IMODE((union.W / "by_chmod").stat().st_mode) == 0o4711
    # Root may write without the bits being lost; others may not.
    _append(top / "by_root")
    assert stat.S_IMODE((union.W / "by_root").stat().st_mode) == 0o6755
    union.as_user(1000, 1000, lambda: _append(Path("by_owner")))
    assert stat.S_IMODE((union.W / "by_owner").stat().st_mode) == 0o755
    assert (union.W / "by_owner").read_text() == "R+"
    os.setxattr(top / "by_xattr", "user.k", b"v")
    assert stat.S_IMODE((union.W / "by_xattr").stat().st_mode) == 0o6755


def test_case_30_killed_in_the_middle_of_a_copy(union: Union) -> None:
    block = os.urandom(MIB)
    with (union.R / "f").open("wb") as file:
        for _ in range(128):
            file.write(block)
    top = union.start()
    fd = os.open(top / "f", os.O_RDWR)
    writer = os.fork()
    if writer == 0:
        try:
            os.pwrite(fd, b"new", 0)
        finally:
            os._exit(0)
    try:
        eventually(lambda: bool(temporaries(union.W)), "the copy begins")
        os.kill(union.pid, signal.SIGSTOP)
        assert not (union.W / "f").exists(), "the copy was faster than the test"
    finally:
        os.kill(union.pid, signal.SIGKILL)  # first of all: a stopped daemon answers nobody
        os.waitpid(writer, 0)
        with contextlib.suppress(OSError):  # ENOTCONN
            os.close(fd)
        union.kill()
    assert temporaries(union.W)
    union.start()
    assert listed(top) == ["f"]
    with (top / "f").open("rb") as file:
        assert all(file.read(MIB) == block for _ in range(128))
        assert file.read() == b""
    # What is left over is in nobody's way: the copy works now, and a tool removes the rest.
    with (top / "f").open("r+b") as file:
        file.write(b"new")
    assert (union.W / "f").stat().st_size == 128 * MIB
    union.stop()
    assert "temporary" in union.check("W")
    assert union.check("W", "--repair") == ""
    assert paths(union.W) == {"f"}
    union.start()
    with (top / "f").open("rb") as file:
        assert file.read(4) == b"new" + block[3:4]


def test_case_31_writing_to_a_fifo_copies_nothing(union: Union) -> None:
    os.mkfifo(union.R / "pipe", 0o600)
    os.mknod(union.R / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    top = union.start(options="dev")
    reader = os.open(top / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(top / "pipe", os.O_WRONLY | os.O_NONBLOCK)
    try:
        assert os.write(writer, b"through") == 7
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(writer)
        os.close(reader)
    with (top / "null").open("wb") as file:
        file.write(b"gone")
    assert paths(union.W) == set()
    os.chmod(top / "pipe", 0o644)
    assert stat.S_ISFIFO((union.W / "pipe").lstat().st_mode)
    os.chmod(top / "null", 0o600)
    assert (union.W / "null").lstat().st_rdev == os.makedev(1, 3)


def test_case_32_a_writable_branch_below_a_read_only_one(union: Union) -> None:
    fill(union.R, "f", "d/r", "empty/", "covers")
    fill(union.W, "w", "own/x", "d/w", "d/s/", "covers")
    fill(union.branch("L"), "l", "d/l", "deep/x/y", "own/z")
    fill(union.R, "deep/x/r")
    (union.R / "deep/x").chmod(0o711)
    top = union.start("R=ro", "W=rw", "L=ro+wh")
    before = paths(union.W)
    refused: list[Callable[[], object]] = [
        lambda: (top / "f").open("a"),
        lambda: os.open(top / "f", os.O_RDWR),
        lambda: os.open(top / "f", os.O_WRONLY | os.O_TRUNC),
        lambda: os.truncate(top / "f", 0),
        lambda: os.open(top / "new", os.O_CREAT | os.O_WRONLY),
        lambda: os.open(top / "f", os.O_CREAT | os.O_WRONLY),
        lambda: os.mkdir(top / "new"),
        lambda: os.mkfifo(top / "d/new"),
        lambda: os.symlink("f", top / "d/new"),
        lambda: os.link(top / "f", top / "own/new"),
        lambda: os.link(top / "w", top / "new"),
        lambda: os.rename(top / "f", top / "own/f"),
        lambda: os.rename(top / "w", top / "new"),
        lambda: os.rename(top / "w", top / "covers"),
        lambda: os.rename(top / "d", top / "own/d"),
        lambda: os.unlink(top / "f"),
        lambda: os.unlink(top / "covers"),
        lambda: os.rmdir(top / "empty"),
        lambda: os.chmod(top / "f", 0o600),
        lambda: os.chown(top / "d", 1, 1),
        lambda: os.utime(top),
        lambda: os.setxattr(top / "f", "user.k", b"v"),
    ]
    for call in refused:
        with fails("EROFS"):
            call()
    with fails("EEXIST"):
        os.mkdir(top / "d")
    with fails("EEXIST"):
        os.link(top / "f", top / "own/x")
    with fails("ENOENT"):
        os.unlink(top / "new")
    assert paths(union.W) == before
    # What does not show on R is changed on W: in place, copied up, or made in what W has.
    (top / "d/w").write_text("in place")
    (top / "d/l").write_text("copied")
    (top / "own/new").write_text("made")
    (top / "own/z").unlink()
    os.rename(top / "d/s", top / "own/s")
    number = (top / "deep/x/y").stat().st_ino
    with (top / "deep/x/y").open() as reader:
        (top / "deep/x/y").write_text("copied")
        assert reader.read() == "copied"
    assert (top / "deep/x/y").stat().st_ino == number
    assert stat.S_IMODE((union.W / "deep/x").stat().st_mode) == 0o711
    made = {"own/new", "own/s", "own/.wh.z", "d/l", "deep", "deep/x", "deep/x/y"}
    assert paths(union.W) == (before | made) - {"d/s"}
    assert sorted(listed(top / "d")) == ["l", "r", "w"]
    assert sorted(listed(top / "own")) == ["new", "s", "x"]
    (top / "l").unlink()
    (top / "w").unlink()
    assert sorted(listed(top)) == ["covers", "d", "deep", "empty", "f", "own"]


def test_a_program_runs_before_and_after_its_copy_up(union: Union) -> None:
    (union.R / "true").write_bytes(Path("/bin/true").read_bytes())
    (union.R / "true").chmod(0o755)
    top = union.start()
    subprocess.run([top / "true"], check=True)
    os.utime(top / "true")
    subprocess.run([top / "true"], check=True)
    as_user(1000, 1000, lambda: subprocess.run(["./true"], check=True), directory=top)
