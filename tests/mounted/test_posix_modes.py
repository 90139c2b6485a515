"""Owners, modes and what the kernel makes of them: setuid, setgid, umask, sticky, permissions.

Each scenario is run in a plain directory too (``tests/support/oracle.py``).
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from tests.support.oracle import Oracle, attributes, symbol_of

USER, GROUP = 1000, 1000


def modes(top: Path, *names: str) -> list[str]:
    return [f"{stat.S_IMODE(os.lstat(top / name).st_mode):04o}" for name in names]


def build_setid(place: Path) -> None:
    for name in ("write", "append", "cut", "open", "owner", "other", "kept", "by_root"):
        (place / name).write_text("text")
        os.chown(place / name, USER, GROUP)
        (place / name).chmod(0o6777)


def test_setuid_is_lost_by_a_change_of_content(oracle: Oracle, udba: str) -> None:
    oracle.start(build_setid, options=udba)

    def scenario(top: Path) -> object:
        fd = os.open(top / "write", os.O_WRONLY)
        os.write(fd, b"x")
        during = stat.S_IMODE(os.fstat(fd).st_mode)
        os.close(fd)
        with (top / "append").open("a") as file:
            file.write("x")
        os.truncate(top / "cut", 1)
        os.close(os.open(top / "open", os.O_WRONLY | os.O_TRUNC))
        return during, modes(top, "write", "append", "cut", "open", "kept")

    oracle.same_as(1001, 1001, scenario)


def test_setuid_is_lost_by_a_change_of_owner(oracle: Oracle) -> None:
    oracle.start(build_setid)

    def scenario(top: Path) -> object:
        os.chown(top / "owner", -1, GROUP)
        return (
            modes(top, "owner"),
            symbol_of(os.chown, top / "other", 1001, -1),
            modes(top, "other"),
        )

    oracle.same_as(USER, GROUP, scenario)

    def by_root(top: Path) -> object:
        os.chown(top / "by_root", 1, 1)
        return modes(top, "by_root"), attributes(os.stat(top / "by_root"))

    oracle.same(by_root)


def test_chmod_and_its_limits(oracle: Oracle) -> None:
    def build(place: Path) -> None:
        (place / "mine").write_text("text")
        os.chown(place / "mine", USER, 50)
        (place / "foreign").write_text("text")
        (place / "d").mkdir()
        os.chown(place / "d", USER, GROUP)

    oracle.start(build)

    def scenario(top: Path) -> object:
        # Not a member of group 50: setgid is dropped silently.
        os.chmod(top / "mine", 0o6755)
        os.chmod(top / "d", 0o3777)
        return (
            modes(top, "mine", "d"),
            symbol_of(os.chmod, top / "foreign", 0o777),
            symbol_of(os.chown, top / "mine", -1, 51),
            symbol_of(os.utime, top / "foreign"),
            symbol_of(os.utime, top / "mine"),
            symbol_of(os.setxattr, top / "foreign", "user.k", b"v"),
        )

    oracle.same_as(USER, GROUP, scenario)


def build_directories(place: Path) -> None:
    place.chmod(0o755)
    (place / "shared").mkdir()
    os.chown(place / "shared", USER, 50)
    (place / "shared").chmod(0o2777)
    (place / "own").mkdir()
    os.chown(place / "own", USER, GROUP)


def test_the_group_of_a_setgid_directory_is_inherited(oracle: Oracle, udba: str) -> None:
    oracle.start(build_directories, options=udba)

    def scenario(top: Path) -> object:
        shared = top / "shared"
        os.close(os.open(shared / "file", os.O_CREAT | os.O_WRONLY, 0o2775))
        os.mkdir(shared / "dir", 0o755)
        os.mkdir(shared / "dir/below")
        os.mkfifo(shared / "pipe")
        os.symlink("x", shared / "link")
        os.mknod(shared / "node", stat.S_IFREG | 0o640)
        names = ("file", "dir", "dir/below", "pipe", "link", "node")
        return [
            (name, os.lstat(shared / name).st_uid, os.lstat(shared / name).st_gid, mode)
            for name, mode in zip(names, modes(shared, *names), strict=True)
        ]

    oracle.same_as(1001, 1001, scenario)
    oracle.same_as(1002, 1002, lambda top: symbol_of(os.mkdir, top / "shared/dir/no"))


def test_umask(oracle: Oracle) -> None:
    oracle.start(build_directories)

    def scenario(top: Path) -> object:
        own = top / "own"
        os.close(os.open(own / "file", os.O_CREAT | os.O_WRONLY, 0o777))
        os.mkdir(own / "dir", 0o777)
        os.mkfifo(own / "pipe", 0o666)
        os.mknod(own / "node", stat.S_IFREG | 0o666)
        os.close(os.open(own / "none", os.O_CREAT | os.O_RDWR, 0))
        return modes(own, "file", "dir", "pipe", "node", "none")

    seen = oracle.same_as(USER, GROUP, scenario, umask=0o027)
    assert seen == ["0750", "0750", "0640", "0640", "0000"]


def test_a_file_created_read_only_can_be_written_by_its_creator(oracle: Oracle) -> None:
    oracle.start(build_directories)

    def scenario(top: Path) -> object:
        fd = os.open(top / "own/f", os.O_CREAT | os.O_RDWR, 0o444)
        os.write(fd, b"text")
        os.lseek(fd, 0, os.SEEK_SET)
        read = os.read(fd, 10)
        os.close(fd)
        return read, symbol_of(os.open, top / "own/f", os.O_WRONLY)

    oracle.same_as(USER, GROUP, scenario)


def test_sticky_directories(oracle: Oracle, udba: str) -> None:
    def build(place: Path) -> None:
        (place / "tmp").mkdir()
        (place / "tmp").chmod(0o1777)
        for name, owner in (("mine", USER), ("foreign", 1001), ("foreign2", 1001)):
            (place / "tmp" / name).write_text("text")
            os.chown(place / "tmp" / name, owner, owner)
        (place / "tmp/dir").mkdir()
        os.chown(place / "tmp/dir", 1001, 1001)

    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        tmp = top / "tmp"
        return (
            symbol_of(os.unlink, tmp / "foreign"),
            symbol_of(os.rmdir, tmp / "dir"),
            symbol_of(os.rename, tmp / "foreign", tmp / "new"),
            symbol_of(os.rename, tmp / "mine", tmp / "foreign"),
            symbol_of(os.rename, tmp / "mine", tmp / "new"),
            symbol_of(os.unlink, tmp / "new"),
            sorted(os.listdir(tmp)),
        )

    oracle.same_as(USER, GROUP, scenario)


def test_permissions_are_enforced(oracle: Oracle, udba: str) -> None:
    def build(place: Path) -> None:
        for name, mode in (("closed", 0o600), ("readable", 0o644), ("group", 0o660)):
            (place / name).write_text("text")
            os.chown(place / name, 0, 50)
            (place / name).chmod(mode)
        for name, mode in (("unlisted", 0o711), ("unentered", 0o744), ("ro", 0o755)):
            (place / name).mkdir()
            (place / name / "in").write_text("text")
            (place / name).chmod(mode)

    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        return (
            symbol_of(os.open, top / "closed", os.O_RDONLY),
            symbol_of(os.open, top / "readable", os.O_RDONLY),
            symbol_of(os.open, top / "readable", os.O_RDWR),
            symbol_of(os.open, top / "group", os.O_RDWR),
            symbol_of(os.truncate, top / "readable", 0),
            symbol_of(os.listdir, top / "unlisted"),
            symbol_of(os.stat, top / "unlisted/in"),
            symbol_of(os.listdir, top / "unentered"),
            symbol_of(os.stat, top / "unentered/in"),
            symbol_of(os.mkdir, top / "ro/new"),
            symbol_of(os.unlink, top / "ro/in"),
            symbol_of(os.rename, top / "ro/in", top / "ro/out"),
            symbol_of(os.link, top / "ro/in", top / "ro/out"),
            symbol_of(os.symlink, "x", top / "ro/new"),
            [os.access(top / "readable", mode) for mode in (os.R_OK, os.W_OK, os.X_OK)],
            symbol_of(os.mknod, top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3)),
        )

    oracle.same_as(USER, GROUP, scenario, groups=(50,))


def test_times(oracle: Oracle, udba: str) -> None:
    def build(place: Path) -> None:
        (place / "f").write_text("text")
        (place / "d").mkdir()
        (place / "link").symlink_to("f")

    oracle.start(build, options=udba)
    moments = (0, 1, 1_234_567_890_123_456_789, 4_000_000_000_000_000_001, -5_000_000_000)

    def scenario(top: Path) -> object:
        seen = []
        for name in ("f", "d", "link"):
            for moment in moments:
                os.utime(top / name, ns=(moment, moment + 7), follow_symlinks=False)
                status = os.lstat(top / name)
                seen.append((name, status.st_atime_ns, status.st_mtime_ns))
        # One of the two, and "now".
        os.utime(top / "f", ns=(11, 22))
        before = os.stat(top / "f").st_mtime_ns
        os.utime(top / "f")
        return seen, before, abs(os.stat(top / "f").st_mtime_ns - _now(top)) < 60_000_000_000

    oracle.same(scenario)


def _now(top: Path) -> int:
    (top / "clock").write_text("")
    return os.stat(top / "clock").st_mtime_ns


def test_the_parent_s_times_change_with_its_names(oracle: Oracle, udba: str) -> None:
    def build(place: Path) -> None:
        (place / "d").mkdir()
        (place / "d/old").write_text("text")
        os.utime(place / "d", ns=(1, 1))

    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        changed = []
        for action in (
            lambda: (top / "d/new").write_text("x"),
            lambda: os.mkdir(top / "d/sub"),
            lambda: os.unlink(top / "d/old"),
            lambda: os.rename(top / "d/new", top / "d/newer"),
            lambda: os.rmdir(top / "d/sub"),
            lambda: os.symlink("x", top / "d/link"),
        ):
            os.utime(top / "d", ns=(1, 1))
            action()
            changed.append(os.stat(top / "d").st_mtime_ns != 1)
        # A change of content is none of the directory's.
        os.utime(top / "d", ns=(1, 1))
        (top / "d/newer").write_text("other")
        changed.append(os.stat(top / "d").st_mtime_ns != 1)
        return changed

    assert oracle.same(scenario) == [True] * 6 + [False]
