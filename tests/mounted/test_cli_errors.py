"""What fuse-aufs answers when it cannot mount: one line, and nothing changed anywhere."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import FUSE_AUFS, Commands, wait_for_end

GOOD = "br:changes=rw:base=ro"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Commands]:
    for name in ("changes", "base", "base/inner", "mnt"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("not a directory")
    commands = Commands(tmp_path)
    yield commands
    commands.clean_up()


def fails(
    run: Commands, *arguments: str, symbol: str, says: str, prefix: tuple[str, ...] = ()
) -> str:
    """Run fuse-aufs, which must refuse and leave everything as it was; return the message."""
    tree, mounts = run.tree(), run.mounts()
    done = run(FUSE_AUFS, *arguments, prefix=prefix)
    assert done.returncode == 1, done
    assert done.stdout == ""
    assert done.stderr.startswith("fuse-aufs: ")
    assert done.stderr.count("\n") == 1
    assert f"({symbol})" in done.stderr
    assert says in done.stderr
    assert run.tree() == tree
    assert run.mounts() == mounts
    return done.stderr


@pytest.mark.parametrize(
    ("options", "symbol", "says"),
    [
        ("br:changes,noatme", "EINVAL", "did you mean 'noatime'?"),
        ("br:changes,shwh", "EINVAL", "'shwh' is not yet supported"),
        ("br:changes,udba=notify", "EINVAL", "udba=reval"),
        ("br:changes,udba=never", "EINVAL", "udba=never"),
        ("lowerdir=base,upperdir=changes", "EINVAL", "add workdir="),
        ("lowerdir=base,upperdir=changes,workdir=missing", "ENOENT", "workdir missing"),
        ("lowerdir=base,upperdir=changes,workdir=file", "ENOTDIR", "workdir file"),
        ("lowerdir=base:missing", "ENOENT", "missing"),
        ("noatime", "EINVAL", "no branch"),
        ("br:changes=rw:base=rw", "EINVAL", "not yet supported"),
        ("br:changes:missing", "ENOENT", "missing"),
        ("br:missing", "ENOENT", "missing"),
        ("br:changes:file", "ENOTDIR", "file"),
        ("br:changes:base:base/inner", "EINVAL", "base/inner"),
        ("br:base/inner:base", "EINVAL", "base/inner"),
        ("br:changes:changes/../changes", "EINVAL", "same directory"),
        ("br:/proc", "EINVAL", "proc"),
        (GOOD + ",log=missing/log", "ENOENT", "missing/log"),
        (GOOD + ",log=base", "EISDIR", "base"),
    ],
)
def test_bad_options_and_branches(run: Commands, options: str, symbol: str, says: str) -> None:
    fails(run, "mnt", "-o", options, symbol=symbol, says=says)


def test_too_many_branches(run: Commands) -> None:
    many = ":".join(["base"] * 128)
    fails(run, "mnt", "-o", f"br:{many}", symbol="ENOSPC", says="127")


@pytest.mark.parametrize(
    ("mountpoint", "symbol", "says"),
    [
        ("nowhere", "ENOENT", "mkdir -p nowhere"),
        ("file", "ENOTDIR", "file"),
        ("file/below", "ENOTDIR", "file/below"),
        ("loop", "ELOOP", "loop"),
    ],
)
def test_bad_mount_points(run: Commands, mountpoint: str, symbol: str, says: str) -> None:
    (run.root / "loop").symlink_to("loop")
    fails(run, mountpoint, "-o", GOOD, symbol=symbol, says=says)


def test_an_odd_name_stays_on_one_line(run: Commands) -> None:
    fails(run, "no\nwhere", "-o", GOOD, symbol="ENOENT", says=r"no\nwhere")
    fails(run, "mnt", "-o", "br:mi\nss\x1b", symbol="ENOENT", says=r"mi\nss\x1b")


def test_a_dead_mount_in_the_way(run: Commands) -> None:
    run.mount("mnt", "-o", GOOD)
    pid = run.pid()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    done = run(FUSE_AUFS, "mnt", "-o", "br:changes:base")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "(ENOTCONN)" in done.stderr
    assert "umount mnt" in done.stderr
    assert "fusermount3 -u mnt" in done.stderr
    subprocess.run(["umount", run.root / "mnt"], check=True)
    run.mount("mnt", "-o", GOOD)


def test_a_branch_that_is_a_dead_mount(run: Commands) -> None:
    run.mount("mnt", "-o", GOOD)
    pid = run.pid()
    os.kill(pid, signal.SIGKILL)
    wait_for_end(pid)
    (run.root / "other").mkdir()
    done = run(FUSE_AUFS, "other", "-o", "br:mnt=ro")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "(ENOTCONN)" in done.stderr


def test_a_branch_that_another_union_writes(run: Commands) -> None:
    (run.root / "other").mkdir()
    run.mount("mnt", "-o", GOOD)
    done = run(FUSE_AUFS, "other", "-o", GOOD)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "(EBUSY)" in done.stderr
    assert [line.mountpoint for line in run.mounts()] == [os.fsencode(run.root / "mnt")]


def test_a_union_on_top_of_its_writable_branch_a_second_time(run: Commands) -> None:
    run.mount("changes", "-o", GOOD)
    fails(run, "changes", "-o", GOOD, symbol="EINVAL", says="lies on another union")


def own_dev(script: str) -> tuple[str, ...]:
    """Run the command where /dev is what ``script`` makes of an empty directory."""
    script = f'mount -t tmpfs none /dev && cd /dev && {script} && cd "$0" && exec "$@"'
    return ("unshare", "-m", "sh", "-c", script)


def test_no_fuse_device(run: Commands) -> None:
    prefix = (*own_dev("true"), str(run.root))
    fails(run, "mnt", "-o", GOOD, symbol="ENOENT", says="there is no /dev/fuse", prefix=prefix)


def test_no_permission_for_the_device(run: Commands) -> None:
    prefix = (
        *own_dev("mknod -m 000 fuse c 10 229"),
        str(run.root),
        *("setpriv", "--bounding-set=-dac_override"),
    )
    fails(run, "mnt", "-o", GOOD, symbol="EACCES", says="/dev/fuse", prefix=prefix)


def test_no_permission_to_mount(run: Commands) -> None:
    prefix = ("setpriv", "--bounding-set=-sys_admin")
    fails(run, "mnt", "-o", GOOD, symbol="EPERM", says="unshare -Urm", prefix=prefix)


def test_root_of_a_user_namespace_without_mounts_of_its_own(run: Commands) -> None:
    prefix = ("unshare", "-Ur")
    fails(run, "mnt", "-o", GOOD, symbol="EPERM", says="unshare -Urm", prefix=prefix)


def test_a_writable_branch_on_a_filesystem_mounted_read_only(run: Commands) -> None:
    script = 'mount -t tmpfs -o ro none "$0"/changes && cd "$0" && exec "$@"'
    prefix = ("unshare", "-m", "sh", "-c", script, str(run.root))
    fails(run, "mnt", "-o", GOOD, symbol="EROFS", says="changes", prefix=prefix)


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("-o", GOOD),
        ("none", "mnt", "more", "-o", GOOD),
        ("mnt", "-o", GOOD, "--frob"),
        ("mnt", "-o"),
    ],
)
def test_wrong_usage(run: Commands, arguments: tuple[str, ...]) -> None:
    tree = run.tree()
    done = run(FUSE_AUFS, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: fuse-aufs ")
    assert "Traceback" not in done.stderr
    assert run.tree() == tree
    assert run.mounts() == []


def test_help_teaches(run: Commands) -> None:
    done = run(FUSE_AUFS, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    for word in ("examples:", "br:/tmp/changes=rw:/usr/share=ro", "umount", "profile="):
        assert word in done.stdout


def test_version(run: Commands) -> None:
    for flag in ("--version", "-V"):
        done = run(FUSE_AUFS, flag)
        assert done.returncode == 0
        assert done.stdout.startswith("fuse-aufs 0.")
