"""The daemon under strain: big copies, many files, odd requests, branches that change under it."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.support.calls import RENAME_EXCHANGE, fallocate, renameat2
from tests.support.directories import listed
from tests.support.mounting import Union
from tests.support.oracle import symbol_of
from tests.support.processes import drop_caches, eventually
from tests.support.trees import PRIVATE, describe, fails, fill, paths, temporaries

MIB = 1 << 20


def test_other_requests_go_on_during_a_big_copy(union: Union) -> None:
    block = os.urandom(MIB)
    with (union.R / "big").open("wb") as file:
        for _ in range(192):
            file.write(block)
    fill(union.R, "small", "d/x")
    top = union.start()
    errors: list[BaseException] = []

    def append() -> None:
        try:
            with (top / "big").open("ab") as file:
                file.write(b"end")
        except OSError as error:
            errors.append(error)

    reader = os.open(top / "big", os.O_RDONLY)
    writer = threading.Thread(target=append)
    writer.start()
    eventually(lambda: bool(temporaries(union.W)), "the copy begins")
    slowest, rounds = 0.0, 0
    while temporaries(union.W):
        begin = time.monotonic()
        assert (top / "small").read_text() == "R"
        (top / f"new{rounds}").write_text("x")
        assert "x" in listed(top / "d")
        os.chmod(top / f"new{rounds}", 0o600)
        # The file itself can be read by those who have it open.
        assert os.pread(reader, 10, 100 * MIB) == block[:10]
        slowest = max(slowest, time.monotonic() - begin)
        rounds += 1
    writer.join()
    assert not errors
    assert rounds >= 2, "the copy was over before anything could be asked"
    assert slowest < 2
    assert os.pread(reader, 10, 192 * MIB) == b"end"
    os.close(reader)
    assert (union.W / "big").stat().st_size == 192 * MIB + 3


def test_two_writers_make_one_copy(union: Union) -> None:
    (union.R / "f").write_bytes(bytes(16 * MIB) + b"R")
    os.link(union.R / "f", union.R / "g")
    top = union.start()
    failed: list[str] = []

    def write(number: int) -> None:
        try:
            name = "fg"[number % 2]
            fd = os.open(top / name, os.O_RDWR)
            os.pwrite(fd, b"%d" % number, number)
            os.close(fd)
        except OSError as error:
            failed.append(str(error))

    writers = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert not failed
    assert (top / "f").read_bytes()[:9] == b"01234567\0"
    assert (top / "g").stat().st_nlink == 2


@pytest.mark.parametrize("change", ["unlink", "rename", "rename over"])
def test_a_name_changes_during_the_copy(union: Union, change: str) -> None:
    with (union.R / "big").open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
    fill(union.R, "other")
    top = union.start()
    fd = os.open(top / "big", os.O_RDWR)
    done: list[int] = []
    writer = threading.Thread(target=lambda: done.append(os.pwrite(fd, b"new", 0)))
    writer.start()
    eventually(lambda: bool(temporaries(union.W)) or not writer.is_alive(), "the copy begins")
    if change == "unlink":
        os.unlink(top / "big")
    elif change == "rename":
        os.rename(top / "big", top / "moved")
    else:
        os.rename(top / "other", top / "big")
    writer.join()
    assert done == [3]
    assert os.pread(fd, 3, 0) == b"new"
    assert os.fstat(fd).st_size == 64 * MIB
    assert os.fstat(fd).st_nlink == (1 if change == "rename" else 0)
    os.close(fd)
    expected = {"unlink": {"other"}, "rename": {"moved", "other"}, "rename over": {"big"}}[change]
    assert set(listed(top)) == expected


def test_unmounting_during_a_copy_leaves_nothing_behind(union: Union) -> None:
    with (union.R / "big").open("wb") as file:
        for _ in range(192):
            file.write(os.urandom(MIB))
    top = union.start()
    fd = os.open(top / "big", os.O_RDWR)
    child = os.fork()
    if child == 0:
        try:
            os.pwrite(fd, b"new", 0)
        finally:
            os._exit(0)
    os.close(fd)
    eventually(lambda: bool(temporaries(union.W)), "the copy begins")
    # In use: SIGTERM waits a little, then takes the mount out of the tree.
    os.kill(union.pid, signal.SIGTERM)
    os.waitpid(child, 0)
    assert union.wait() == 0
    assert not temporaries(union.W)
    union.expect_log("in use")
    union.start()
    assert (top / "big").stat().st_size == 192 * MIB


def test_removals_in_the_background_leave_nothing(union: Union) -> None:
    """Of one tree: ``rm`` is at the parent while the whiteouts of the child are still removed."""
    trees = [f"t{number}" for number in range(12)]
    for tree in trees:
        fill(union.R, *(f"{tree}/d/x/f{number}" for number in range(300)))
        fill(union.R, *(f"{tree}/d/g{number}" for number in range(5)))
    top = union.start()
    for tree in trees:
        subprocess.run(["rm", "-rf", top / tree], check=True)
    union.stop()
    assert paths(union.W) == {f".wh.{tree}" for tree in trees}


def test_memory_is_given_back(union: Union) -> None:
    """Many files, forgotten and looked up again: the daemon does not grow with each round."""
    for number in range(30):
        fill(union.R, *(f"d{number}/f{file}" for file in range(200)))
    union.no_comparison("six thousand files: fewer show the same")
    union.ignore_branches("for the same reason")
    top = union.start(options="udba=none")

    def visit() -> int:
        for number in range(30):
            for name in os.listdir(top / f"d{number}"):
                os.stat(top / f"d{number}" / name)
        full = union.resident()
        drop_caches()
        os.stat(top / "d0/f0")  # answered after the forgetting
        return full

    rounds = [visit() for _ in range(4)]
    # In KiB. Six thousand nodes are about four megabytes; the allocator keeps what it once had.
    assert max(rounds[2:]) < max(rounds[:2]) + 1500, rounds


def test_descriptors_are_bounded(union: Union) -> None:
    """More directories than the process may have descriptors, all of them in use by the kernel."""
    count = 3000
    for number in range(count):
        fill(union.R, f"d{number}/")
    top = union.start(options="udba=none")
    for number in range(count):
        os.stat(top / f"d{number}")
        if number % 100 == 0:
            os.mkdir(top / f"d{number}/sub")
    assert len(os.listdir(f"/proc/{union.pid}/fd")) < count
    handles = [os.open(top / f"d{number}", os.O_RDONLY) for number in range(0, count, 10)]
    for number, fd in zip(range(0, count, 10), handles, strict=True):
        assert os.listdir(fd) == (["sub"] if number % 100 == 0 else [])
        os.close(fd)
    union.no_comparison("three thousand directories: fewer show the same")


def test_odd_requests(union: Union) -> None:
    """Whatever is asked, somebody answers, and the daemon lives."""
    fill(union.R, "f", "d/x")
    fill(union.W, "g")
    union.expect_log("a write to /f failed: .*File too large")
    top = union.start()
    fd = os.open(top / "f", os.O_RDWR)
    directory = os.open(top / "d", os.O_RDONLY)
    requests: dict[str, Callable[[], object]] = {
        "unknown ioctl": lambda: fcntl.ioctl(fd, 0xDEAD, b"\0" * 8),
        "terminal ioctl": lambda: os.tcgetpgrp(fd),
        "ioctl of a directory": lambda: fcntl.ioctl(directory, 0xDEAD, b"\0" * 8),
        "fallocate": lambda: fallocate(fd, 0, 0, 100_000),
        "punch a hole": lambda: fallocate(fd, 3, 0, 10),
        "fallocate with nonsense": lambda: fallocate(fd, 0x4000, 0, 10),
        "seek data": lambda: os.lseek(fd, 0, os.SEEK_DATA),
        "seek hole": lambda: os.lseek(fd, 0, os.SEEK_HOLE),
        "seek beyond": lambda: os.lseek(fd, 10**9, os.SEEK_DATA),
        "temporary file": lambda: os.open(top, os.O_TMPFILE | os.O_RDWR),
        "copy range": lambda: os.copy_file_range(fd, fd, 1, 0, 1000),
        "sendfile": lambda: os.sendfile(fd, fd, 0, 1),
        "huge offset": lambda: os.pread(fd, 10, 2**62),
        "huge write": lambda: os.pwrite(fd, b"x", 2**63 - 2),
        "huge truncate": lambda: os.ftruncate(fd, 2**62),
        "read a directory": lambda: os.read(directory, 10),
        "write a directory": lambda: os.write(directory, b"x"),
        "truncate a directory": lambda: os.ftruncate(directory, 0),
        "empty name": lambda: os.stat(f"{top}/d//./../d/x"),
        "exchange": lambda: renameat2(top / "f", top / "g", RENAME_EXCHANGE),
        "rename the root": lambda: os.rename(top, top / "x"),
        "remove the root": lambda: os.rmdir(top),
        "link to itself": lambda: os.link(top / "f", top / "f"),
        "flock": lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "lock": lambda: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
        "poll": lambda: select.select([fd], [fd], [], 1),
        "sync": os.sync,
        "fsync": lambda: os.fsync(fd),
        "fdatasync": lambda: os.fdatasync(fd),
        "fsync of a directory": lambda: os.fsync(directory),
        "advise": lambda: os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED),
        "chown to nobody": lambda: os.chown(top / "f", -1, -1),
        "all bits": lambda: os.chmod(top / "f", 0o7777),
        "odd type": lambda: os.mknod(top / "odd", 0o150644),
        "root's mode": lambda: os.chmod(top, 0o755),
        "root's times": lambda: os.utime(top, ns=(1, 1)),
        "root's xattr": lambda: os.setxattr(top, "user.k", b"v"),
    }
    answers = {what: symbol_of(request) for what, request in requests.items()}
    os.close(fd)
    os.close(directory)
    internal = {what: answer for what, answer in answers.items() if answer in ("EIO", "ENOTCONN")}
    assert not internal
    for what in ("unknown ioctl", "terminal ioctl", "ioctl of a directory"):
        assert answers[what] == "ENOTTY"
    for what in ("temporary file", "punch a hole"):
        assert answers[what] in ("ok", "EOPNOTSUPP", "ENOTSUP")
    for what in ("sync", "fsync", "flock", "lock", "poll", "chown to nobody", "root's times"):
        assert answers[what] == "ok", what
    assert (top / "d/x").read_text() == "R"
    assert not (top / "odd").exists()


def test_case_73_branches_that_change(union: Union) -> None:
    fill(union.R, "gone", "content", "replaced", "upper", "d/x", "type")
    fill(union.W, "mine")
    union.ignore_branches("the test changes them")
    top = union.start()
    before = describe(top)
    assert before["content"].kind == "file"
    (union.R / "gone").unlink()
    with fails("ENOENT"):
        os.stat(top / "gone")
    (union.R / "content").write_text("changed directly, and longer")
    assert (top / "content").read_text() == "changed directly, and longer"
    assert (top / "content").stat().st_size == 28
    (union.R / "other").write_text("another file")
    (union.R / "other").rename(union.R / "replaced")
    assert (top / "replaced").read_text() == "another file"
    (union.R / "type").unlink()
    (union.R / "type").mkdir()
    assert (top / "type").is_dir()
    (union.W / "mine").unlink()
    with fails("ENOENT"):
        (top / "mine").read_text()
    fill(union.W, ".wh.upper")
    with fails("ENOENT"):
        os.stat(top / "upper")
    assert set(listed(top)) == {"content", "replaced", "d", "type"}


def test_branches_that_change_under_open_files(union: Union) -> None:
    """Errors are allowed then, damage and a dead daemon are not."""
    fill(union.R, "f", "d/x", "d/y")
    fill(union.W, "g", "e/z")
    union.ignore_branches("the test changes them")
    top = union.start()
    fds = [os.open(top / name, os.O_RDWR) for name in ("f", "d/x", "g", "e/z")]
    directories = [os.open(top / name, os.O_RDONLY) for name in ("d", "e")]
    for branch, names in ((union.R, ("f", "d/x", "d/y")), (union.W, ("g", "e/z"))):
        for name in names:
            (branch / name).unlink()
    (union.R / "d").rmdir()
    (union.W / "e").rmdir()
    allowed = {"ok", "ENOENT", "ESTALE"}
    for fd in fds:
        for request in (os.fstat, os.fsync, lambda fd: os.pwrite(fd, b"x", 0)):
            assert symbol_of(request, fd) in allowed
        assert symbol_of(os.pread, fd, 10, 0) == "ok"
        os.close(fd)
    for fd in directories:
        assert symbol_of(os.listdir, fd) in allowed
        assert symbol_of(os.mkdir, "new", dir_fd=fd) in allowed
        os.close(fd)
    fill(top, "alive", "d/again")
    assert (top / "d/again").read_text() == "mnt"


def test_a_branch_below_the_mount_point(union: Union) -> None:
    """The daemon would wait for itself if it ever walked the path again."""
    inner = union.mount / "W"
    inner.mkdir()
    fill(union.R, "f")
    top = union.start("mnt/W=rw", "R=ro+wh")
    assert (top / "f").read_text() == "R"
    (top / "f").write_text("changed")
    (top / "W").mkdir()
    assert sorted(listed(top)) == ["W", "f"]
    union.no_comparison("the settled branch cannot be seen while the mount covers it")
    union.stop()
    assert (inner / "f").read_text() == "changed"
    assert set(os.listdir(inner)) == PRIVATE | {"f", "W"}


def test_mounts_below_a_branch_are_not_entered(union: Union) -> None:
    fill(union.R, "d/under", "f")
    mounted = union.tmpfs("R/d", "1m")
    fill(mounted, "above")
    union.ignore_branches("the mount is part of what is seen there")
    top = union.start()
    assert listed(top / "d") == ["under"]


def test_many_programs_at_once(union: Union) -> None:
    """Eight processes create, rename, link, remove and list in the same few directories."""
    fill(union.R, *(f"d{number}/f{file}" for number in range(4) for file in range(20)))
    top = union.start(options="udba=none,volatile")
    allowed = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.EXDEV, errno.ESTALE}

    def work(seed: int) -> None:
        for step in range(120):
            number = (step * 7 + seed * 13) % 80
            path = top / f"d{number % 4}/f{number // 4}"
            other = top / f"d{(number + seed) % 4}/g{step % 10}"
            actions: list[Callable[[], object]] = [
                partial(path.write_text, "x" * 100),
                partial(os.rename, path, other),
                partial(os.link, other, path),
                partial(os.unlink, other),
                partial(os.listdir, path.parent),
                partial(os.chmod, path, 0o600),
            ]
            try:
                actions[(step + seed) % len(actions)]()
            except OSError as error:
                if error.errno not in allowed:
                    raise

    children = []
    for seed in range(6):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work(seed)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 6


def test_the_read_only_union_and_the_options_of_mount(union: Union) -> None:
    fill(union.R, "f")
    top = union.start(options="ro,noexec,nosuid,nodev")
    with fails("EROFS"):
        (top / "f").write_text("x")
    flags = os.statvfs(top).f_flag
    for flag in (os.ST_RDONLY, os.ST_NOEXEC, os.ST_NOSUID, os.ST_NODEV):
        assert flags & flag
    line = next(
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {top} " in line
    )
    kind, source = line.split(" - ")[1].split()[:2]
    assert (kind, source) == ("fuse.aufs", "none")
    assert paths(union.W) == set()
