"""What is neither a plain file nor a directory: symbolic links, device nodes, fifos, sockets.

Each scenario is run in a plain directory too (``tests/support/oracle.py``).
"""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from tests.support.mounting import Union
from tests.support.oracle import Oracle, attributes, symbol_of
from tests.support.trees import fails, fill, paths


def build(place: Path) -> None:
    for name in ("f", "d/in"):
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    (place / "dirlink").symlink_to("d")


# Symbolic links


def test_symlinks(oracle: Oracle) -> None:
    oracle.start(build)
    long = "/".join(["x" * 100] * 40)

    def scenario(top: Path) -> object:
        os.symlink(long, top / "long")
        os.symlink("f", top / "again")
        return (
            os.readlink(top / "long") == long,
            os.lstat(top / "long").st_size,
            os.readlink(top / "again"),
            (top / "again").read_text(),
            symbol_of(os.symlink, "x", top / "f"),
            symbol_of(os.symlink, "x", top / "dangling"),
            symbol_of(os.symlink, "", top / "nothing"),
            symbol_of(os.symlink, "y" * 4096, top / "too_long"),
            symbol_of(os.readlink, top / "f"),
            symbol_of(os.stat, top / "loop"),
            (top / "dirlink/in").read_text(),
            symbol_of(os.rmdir, top / "dirlink"),
            symbol_of(os.unlink, top / "dirlink"),
            (top / "d/in").exists(),
        )

    oracle.same(scenario)


@pytest.mark.parametrize("inside", [True, False])
def test_no_call_follows_a_symlink_of_a_branch(union: Union, tmp_path: Path, inside: bool) -> None:
    """A hostile layer's links lead out of it, or back into the mount: a daemon that follows waits
    for itself, or changes somebody else's file."""
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    fill(union.R, "f")
    target = union.mount / "f" if inside else victim
    (union.R / "link").symlink_to(target)
    (union.R / "dir").symlink_to(tmp_path)
    os.setxattr(union.R / "link", "trusted.k", b"v", follow_symlinks=False)
    top = union.start()
    link = top / "link"
    assert os.getxattr(link, "trusted.k", follow_symlinks=False) == b"v"
    os.setxattr(link, "trusted.new", b"v", follow_symlinks=False)
    assert sorted(os.listxattr(link, follow_symlinks=False)) == ["trusted.k", "trusted.new"]
    os.removexattr(link, "trusted.k", follow_symlinks=False)
    os.chown(link, 5, 6, follow_symlinks=False)
    os.utime(link, ns=(1, 2), follow_symlinks=False)
    os.link(link, top / "link2", follow_symlinks=False)
    os.rename(link, top / "moved")
    os.unlink(top / "moved")
    os.rename(top / "dir", top / "dir2")
    status = victim.stat()
    assert (victim.read_text(), status.st_uid, status.st_mode & 0o777) == ("untouched", 0, 0o644)
    assert os.listxattr(victim) == []
    assert status.st_nlink == 1
    assert not (union.W / "f").exists()
    assert os.readlink(union.W / "link2") == str(target)


# Device nodes, fifos, sockets


def test_special_files(oracle: Oracle, udba: str) -> None:
    def build_nodes(place: Path) -> None:
        os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(place / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
        os.mkfifo(place / "pipe")

    oracle.start(build_nodes, options=udba)

    def scenario(top: Path) -> object:
        os.mknod(top / "zero", stat.S_IFCHR | 0o640, os.makedev(1, 5))
        os.mknod(top / "disk2", stat.S_IFBLK | 0o600, os.makedev(7, 1000))
        os.mkfifo(top / "pipe2", 0o640)
        os.mknod(top / "file", stat.S_IFREG | 0o600)
        os.mknod(top / "sock", stat.S_IFSOCK | 0o600)
        with (top / "zero").open("rb", buffering=0) as file:
            zeros = file.read(4)
        for name in ("null", "disk", "pipe"):
            os.chown(top / name, 1, 2)
        names = ("null", "disk", "pipe", "zero", "disk2", "pipe2", "file", "sock")
        return (
            zeros,
            [
                (name, os.lstat(top / name).st_rdev, *attributes(os.lstat(top / name)))
                for name in names
            ],
            symbol_of(os.mkfifo, top / "null"),
            symbol_of(os.open, top / "sock", os.O_RDWR),
        )

    oracle.same(scenario)


def test_a_whiteout_of_overlayfs_cannot_be_made(union: Union) -> None:
    top = union.start()
    with fails("EPERM"):
        os.mknod(top / "hidden", stat.S_IFCHR | 0o600, os.makedev(0, 0))
    os.mknod(top / "block", stat.S_IFBLK | 0o600, os.makedev(0, 0))
    assert paths(union.W) == {"block"}


def test_a_socket_can_be_bound_and_reached(union: Union) -> None:
    top = union.start()
    here = os.open(".", os.O_RDONLY)
    os.chdir(top)  # the path of a socket has to be short
    try:
        with (
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server,
            socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client,
        ):
            server.bind("sock")
            server.listen()
            client.connect("sock")
            with server.accept()[0] as connection:
                client.sendall(b"hello")
                assert connection.recv(10) == b"hello"
    finally:
        os.fchdir(here)
        os.close(here)
    assert stat.S_ISSOCK((top / "sock").lstat().st_mode)
    os.unlink(top / "sock")
    assert paths(union.W) == set()
