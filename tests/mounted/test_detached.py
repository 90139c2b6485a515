"""A union that was unmounted lazily while it was in use, and a new one on the same branch.

``umount -l`` and a new mount are what a script does when a mount is busy, and what an engine does
when a process of somebody else keeps one alive.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.support.commands import FUSE_AUFS, Commands, wait_for_end
from tests.support.oracle import symbol_of


@pytest.fixture(params=["aufs", "driver"])
def options(request: pytest.FixtureRequest) -> str:
    return f"br:changes:lower,profile={request.param}"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Commands]:
    for name in ("changes", "lower", "mnt", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower/low").write_text("low")
    (tmp_path / "changes/up").write_text("up")
    commands = Commands(tmp_path)
    yield commands
    commands.clean_up()


class Users:
    """Descriptors in the old mount: of a file on each branch, and of the root."""

    def __init__(self, top: Path) -> None:
        self.up = os.open(top / "up", os.O_RDWR)
        self.low = os.open(top / "low", os.O_RDWR)
        self.root = os.open(top, os.O_RDONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self.up, self.low, self.root):
            os.close(fd)


def detached(run: Commands, options: str) -> tuple[int, Users]:
    """Mount, use it, and unmount it lazily; return its server and the users."""
    run.mount("mnt", "-o", options)
    pid = run.pid()
    users = Users(run.root / "mnt")
    subprocess.run(["umount", "-l", run.root / "mnt"], check=True)
    return pid, users


def test_the_branch_can_be_mounted_again(run: Commands, options: str) -> None:
    top = run.root / "mnt"
    pid, users = detached(run, options)
    with users:
        run.mount("mnt", "-o", options)
        (top / "low").write_text("changed")
        (top / "new").write_text("new")
        # Who still uses the old one reads, and writes what is on the branch and open for it.
        assert os.pread(users.low, 9, 0) == b"low"
        assert os.pwrite(users.up, b"UP", 0) == 2
        assert sorted(os.listdir(users.root)) == ["low", "new", "up"]
        # A copy-up now would put the old content over the change.
        assert symbol_of(os.pwrite, users.low, b"x", 0) == "EROFS"
        assert symbol_of(os.open, "n", os.O_CREAT | os.O_WRONLY, dir_fd=users.root) == "EROFS"
        assert symbol_of(os.unlink, "up", dir_fd=users.root) == "EROFS"
        assert symbol_of(os.mkdir, "d", dir_fd=users.root) == "EROFS"
        for name in ("up", "new"):
            path = f"/proc/self/fd/{users.root}/{name}"
            assert symbol_of(os.truncate, path, 0) == "EROFS"
            assert symbol_of(os.open, path, os.O_WRONLY | os.O_TRUNC) == "EROFS"
            assert symbol_of(os.chmod, path, 0o600) == "EROFS"
            assert symbol_of(os.chown, path, 1, 1) == "EROFS"
            assert symbol_of(os.utime, path, (0, 0)) == "EROFS"
            assert symbol_of(os.setxattr, path, "user.k", b"v") == "EROFS"
        assert (top / "low").read_text() == "changed"
        assert (top / "up").read_bytes() == b"UP"
        assert (top / "new").read_bytes() == b"new"
    wait_for_end(pid)
    assert (run.root / "lower/low").read_text() == "low"
    # The lock is the new one's: a third is refused.
    third = run(FUSE_AUFS, "other", "-o", options)
    assert (third.returncode, "(EBUSY)" in third.stderr) == (1, True)


def test_what_nobody_else_wants_stays_writable(run: Commands, options: str) -> None:
    pid, users = detached(run, options)
    with users:
        assert os.pwrite(users.low, b"L", 0) == 1
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=users.root))
    wait_for_end(pid)
    assert (run.root / "changes/low").read_bytes() == b"Low"
    assert (run.root / "changes/new").exists()


def test_a_mounted_union_keeps_its_branch(run: Commands, options: str) -> None:
    """Also when it is covered by another mount, or is asked for its branch without need."""
    run.mount("mnt", "-o", options)
    pid = run.pid()
    with Users(run.root / "mnt") as users:
        subprocess.run(["mount", "-t", "tmpfs", "none", run.root / "mnt"], check=True)
        try:
            other = run(FUSE_AUFS, "other", "-o", options)
            assert (other.returncode, "(EBUSY)" in other.stderr) == (1, True)
            assert f"(kill {pid} does)" in other.stderr
            os.kill(pid, signal.SIGUSR1)
            for _ in range(10):
                time.sleep(0.03)
                assert os.pwrite(users.low, b"L", 0) == 1
        finally:
            subprocess.run(["umount", run.root / "mnt"], check=True)
    (run.root / "mnt/more").touch()


def test_a_server_without_descriptors_survives_being_asked(run: Commands, options: str) -> None:
    run.mount("mnt", "-o", options)
    pid = run.pid()
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    for number in (signal.SIGUSR1, signal.SIGTERM):
        os.kill(pid, number)
        time.sleep(0.1)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    (run.root / "mnt/new").touch()


def test_ending_the_old_server_leaves_the_new_mount(run: Commands, options: str) -> None:
    pid, users = detached(run, options)
    with users:
        run.mount("mnt", "-o", options)
        for _ in range(2):
            os.kill(pid, signal.SIGTERM)
            assert os.pread(users.up, 9, 0) == b"up"
        assert [line.mountpoint for line in run.mounts()] == [os.fsencode(run.root / "mnt")]
    wait_for_end(pid)
    assert sorted(os.listdir(run.root / "mnt")) == ["low", "up"]


def test_a_copy_in_another_mount_namespace(run: Commands, options: str) -> None:
    """A service with a mount namespace of its own keeps what was mounted when it started."""
    run.mount("mnt", "-o", options)
    pid = run.pid()
    command = ["unshare", "-m", "--propagation", "private", "sh", "-c", "echo there; read line"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        service.stdout.readline()
        subprocess.run(["umount", run.root / "mnt"], check=True)
        run.mount("mnt", "-o", options)
        (run.root / "mnt/new").touch()
        service.communicate(b"\n")
    wait_for_end(pid)
    assert (run.root / "changes/new").exists()


def test_who_does_not_understand_is_not_asked(run: Commands, options: str) -> None:
    """The signal would kill whoever else holds a lock on the directory."""
    command = ["flock", "changes", "sh", "-c", "echo locked; read line"]
    with subprocess.Popen(
        command, cwd=run.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        refused = run(FUSE_AUFS, "mnt", "-o", options)
        assert (refused.returncode, "(EBUSY)" in refused.stderr) == (1, True)
        assert holder.poll() is None
        holder.communicate(b"\n")
        assert holder.returncode == 0
