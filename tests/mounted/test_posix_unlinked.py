"""Files that are open and have no name any more: everything a descriptor can do goes on working.

Editors, package managers and every program with a temporary file depend on it. FUSE sends most of
these requests by node, without the descriptor, which is where peers answer ENOENT.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.oracle import Oracle, attributes, symbol_of

_TIME_NS = 1_234_567_890_987_654_321


def build(place: Path) -> None:
    (place / "f").write_bytes(b"0123456789")
    (place / "d").mkdir()
    (place / "d/in").write_bytes(b"0123456789")
    (place / "other").write_bytes(b"other")
    (place / "linked").write_bytes(b"0123456789")
    os.link(place / "linked", place / "link")


def use(fd: int) -> list[object]:
    """Do everything to a file by its descriptor, and say what came of it."""
    seen: list[object] = [attributes(os.fstat(fd)), os.pread(fd, 100, 0)]
    os.fchmod(fd, 0o600)
    os.fchown(fd, 12, 34)
    seen.append(attributes(os.fstat(fd)))
    seen.extend((os.pwrite(fd, b"abc", 4), os.pread(fd, 100, 0)))
    os.ftruncate(fd, 6)
    seen.extend((attributes(os.fstat(fd)), os.pread(fd, 100, 0)))
    os.ftruncate(fd, 20)
    seen.append(os.pread(fd, 100, 0))
    os.utime(fd, ns=(_TIME_NS, _TIME_NS))
    status = os.fstat(fd)
    seen.extend((status.st_atime_ns, status.st_mtime_ns))
    os.setxattr(fd, "user.k", b"v")
    seen.extend((os.getxattr(fd, "user.k"), os.listxattr(fd)))
    os.removexattr(fd, "user.k")
    seen.append(symbol_of(os.getxattr, fd, "user.k"))
    os.fsync(fd)
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, b"end")
    seen.append(attributes(os.fstat(fd)))
    return seen


@pytest.mark.parametrize("name", ["f", "d/in"])
def test_everything_works_without_a_name(oracle: Oracle, udba: str, name: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        fd = os.open(top / name, os.O_RDWR)
        try:
            os.unlink(top / name)
            return use(fd), symbol_of(os.stat, top / name), sorted(os.listdir(top))
        finally:
            os.close(fd)

    result = oracle.same(scenario)
    assert isinstance(result, tuple)
    assert result[0][0][3] == 0  # st_nlink


@pytest.mark.parametrize("name", ["f", "d/in"])
def test_everything_works_through_a_path_descriptor(oracle: Oracle, udba: str, name: str) -> None:
    """An ``O_PATH`` descriptor is none to the filesystem, yet it still leads to the file."""
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        path = os.open(top / name, os.O_PATH)
        try:
            os.unlink(top / name)
            before = attributes(os.fstat(path)), os.listxattr(f"/proc/self/fd/{path}")
            os.chmod(f"/proc/self/fd/{path}", 0o640)
            fd = os.open(f"/proc/self/fd/{path}", os.O_RDWR)
            try:
                used = use(fd)
            finally:
                os.close(fd)
            return before, used, attributes(os.fstat(path))
        finally:
            os.close(path)

    oracle.same(scenario)


def test_a_symbolic_link_is_read_without_a_name(oracle: Oracle, udba: str) -> None:
    oracle.start(lambda place: os.symlink("target", place / "link"), options=udba)

    def scenario(top: Path) -> object:
        fd = os.open(top / "link", os.O_PATH | os.O_NOFOLLOW)
        try:
            os.unlink(top / "link")
            return os.readlink("", dir_fd=fd)
        finally:
            os.close(fd)

    oracle.same(scenario)


@pytest.mark.parametrize(
    "change",
    [
        lambda fd: os.fchmod(fd, 0o4711),
        lambda fd: os.fchown(fd, 12, 34),
        lambda fd: os.utime(fd, ns=(_TIME_NS, _TIME_NS)),
        lambda fd: os.setxattr(fd, "user.k", b"v"),
    ],
    ids=["fchmod", "fchown", "futimens", "fsetxattr"],
)
def test_attributes_through_a_reading_descriptor(
    oracle: Oracle, change: Callable[[int], None]
) -> None:
    """The first change, and so the copy-up, comes when the name has gone already."""
    oracle.start(build)

    def scenario(top: Path) -> object:
        fd = os.open(top / "f", os.O_RDONLY)
        try:
            os.unlink(top / "f")
            change(fd)
            status = os.fstat(fd)
            time = status.st_mtime_ns == _TIME_NS
            return attributes(status), time, os.listxattr(fd), os.pread(fd, 100, 0)
        finally:
            os.close(fd)

    oracle.same(scenario)


def test_a_file_replaced_by_rename(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        fd = os.open(top / "f", os.O_RDWR)
        try:
            os.rename(top / "other", top / "f")
            return use(fd), (top / "f").read_bytes(), sorted(os.listdir(top))
        finally:
            os.close(fd)

    oracle.same(scenario)


def test_the_name_is_used_again(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        old = os.open(top / "f", os.O_RDWR)
        os.unlink(top / "f")
        new = os.open(top / "f", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            os.write(new, b"new")
            os.pwrite(old, b"OLD", 0)
            different = os.fstat(old).st_ino != os.fstat(new).st_ino
            return (
                different,
                os.pread(old, 100, 0),
                os.pread(new, 100, 0),
                (top / "f").read_bytes(),
                attributes(os.fstat(old)),
                attributes(os.fstat(new)),
            )
        finally:
            os.close(old)
            os.close(new)

    oracle.same(scenario)


def test_one_of_two_names_goes(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        fd = os.open(top / "linked", os.O_RDWR)
        try:
            os.unlink(top / "linked")
            one = use(fd)
            beside = (attributes(os.stat(top / "link")), (top / "link").read_bytes())
            os.unlink(top / "link")
            none = attributes(os.fstat(fd))
            os.pwrite(fd, b"still", 0)
            return one, beside, none, os.pread(fd, 100, 0)
        finally:
            os.close(fd)

    oracle.same(scenario)


def test_several_descriptors(oracle: Oracle) -> None:
    oracle.start(build)

    def scenario(top: Path) -> object:
        reader = os.open(top / "f", os.O_RDONLY)
        writer = os.open(top / "f", os.O_WRONLY | os.O_APPEND)
        os.unlink(top / "f")
        try:
            os.write(writer, b"+")
            seen = [os.pread(reader, 100, 0)]
            os.close(writer)
            seen.append(os.pread(reader, 100, 0))
            return seen, attributes(os.fstat(reader))
        finally:
            os.close(reader)

    oracle.same(scenario)


def test_the_whole_directory_goes(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        fd = os.open(top / "d/in", os.O_RDWR)
        directory = os.open(top / "d", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.unlink(top / "d/in")
            os.rmdir(top / "d")
            used = use(fd)
            return (
                used,
                symbol_of(os.open, "new", os.O_CREAT | os.O_WRONLY, dir_fd=directory),
                symbol_of(os.mkdir, "new", dir_fd=directory),
                symbol_of(os.stat, "in", dir_fd=directory),
                stat.S_ISDIR(os.fstat(directory).st_mode),
                symbol_of(os.stat, top / "d"),
            )
        finally:
            os.close(directory)
            os.close(fd)

    oracle.same(scenario)


def test_a_mapping_of_an_unlinked_file(oracle: Oracle) -> None:
    oracle.start(build)

    def scenario(top: Path) -> object:
        fd = os.open(top / "f", os.O_RDWR)
        try:
            with mmap.mmap(fd, 0) as mapping:
                os.unlink(top / "f")
                mapping[0:3] = b"abc"
                mapping.flush()
                return bytes(mapping[:]), os.pread(fd, 100, 0)
        finally:
            os.close(fd)

    oracle.same(scenario)


def test_other_types_without_a_name(oracle: Oracle) -> None:
    def build_others(place: Path) -> None:
        os.mkfifo(place / "pipe")
        (place / "link").symlink_to("nowhere")

    oracle.start(build_others)

    def scenario(top: Path) -> object:
        pipe = os.open(top / "pipe", os.O_RDWR)
        link = os.open(top / "link", os.O_PATH | os.O_NOFOLLOW)
        try:
            os.unlink(top / "pipe")
            os.unlink(top / "link")
            os.fchmod(pipe, 0o600)
            os.write(pipe, b"through")
            return (
                os.read(pipe, 100),
                attributes(os.fstat(pipe)),
                attributes(os.fstat(link)),
            )
        finally:
            os.close(pipe)
            os.close(link)

    oracle.same(scenario)


def test_nothing_is_left_of_them(oracle: Oracle) -> None:
    top = oracle.start(build)
    for place in ("lower", "upper", "merged"):
        for name in ("f", "linked", "link"):
            fd = os.open(top / place / name, os.O_RDWR)
            os.unlink(top / place / name)
            os.pwrite(fd, b"x", 0)
            os.close(fd)
    oracle.union.stop()
    for private in (".wh..wh.orph", ".wh..wh.plnk"):
        assert os.listdir(oracle.union.W / private) == []
    oracle.union.start()
