"""The union of a plain user, without a namespace: mounted and unmounted through ``fusermount3``.

/dev/fuse is a node of the test's own with mode 0666 there, and /etc/fuse.conf a file of its own,
both bound over the host's in a private mount namespace; the host's are not touched.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from tests.support.mounting import Union
from tests.support.processes import eventually, in_user_namespace
from tests.support.trees import assert_whiteout, fails, fill

T = TypeVar("T")

# fusermount3 serves only those who stand in /etc/passwd, and this one does everywhere.
NOBODY = pwd.getpwnam("nobody").pw_uid

pytestmark = pytest.mark.usefixtures("warm")


def as_plain_user(
    scenario: Callable[[Union], T],
    prepare: Callable[[Path], object] = lambda _: None,
    configuration: str = "",
) -> T:
    """Run a scenario with a union of one's own as a plain user.

    prepare: called before, with the directory above the user's home, as root.
    configuration: what /etc/fuse.conf says.
    """

    def before(root: Path) -> None:
        (root / "fuse.conf").write_text(configuration)
        subprocess.run(["mount", "--bind", root / "fuse.conf", "/etc/fuse.conf"], check=True)
        prepare(root)

    def run(place: Path) -> T:
        union = Union(place)
        try:
            result = scenario(union)
            union.finish()
        finally:
            union.take_down()
        return result

    return in_user_namespace(run, uid=NOBODY, prepare=before, namespace=False)


def mounts(union: Union) -> list[list[str]]:
    """Return the fields of the lines of /proc/mounts for the mount point."""
    lines = map(str.split, Path("/proc/mounts").read_text().splitlines())
    return [line for line in lines if line[1] == str(union.mount.absolute())]


@pytest.mark.parametrize("options", ["", "profile=driver", "init=pyfuse3"])
def test_everyday_work(options: str) -> None:
    def scenario(union: Union) -> None:
        fill(union.R, "f", "d/x", "gone", "e/z")
        (union.R / "f").chmod(0o640)
        os.link(union.R / "d/x", union.R / "d/y")
        top = union.start(options=options)
        ((_, _, kind, flags, _, _),) = mounts(union)
        assert kind == "fuse.aufs"
        assert {"nosuid", "nodev", "default_permissions", f"user_id={NOBODY}"} <= set(
            flags.split(",")
        )
        with (top / "f").open("a") as file:
            file.write("+")
        assert (union.W / "f").read_text() == "R+"
        assert (union.W / "f").stat().st_mode & 0o777 == 0o640
        (top / "d/x").write_text("both")
        assert (top / "d/y").read_text() == "both"
        os.unlink(top / "gone")
        assert_whiteout(union.W, "gone")
        subprocess.run(["rm", "-r", top / "e"], check=True)
        os.mkdir(top / "e")
        assert (union.W / "e/.wh..wh..opq").exists()
        os.mkfifo(top / "e/pipe")

    as_plain_user(scenario)


def test_unmounted_with_fusermount3() -> None:
    def scenario(union: Union) -> None:
        fill(union.R, "f")
        union.start()
        subprocess.run(["fusermount3", "-u", union.mount], check=True)
        assert union.wait() == 0
        assert mounts(union) == []
        assert not list(union.state.iterdir())

    as_plain_user(scenario)


@pytest.mark.parametrize("busy", [False, True])
def test_unmounted_by_a_signal(busy: bool) -> None:
    def scenario(union: Union) -> None:
        fill(union.R, "f")
        top = union.start()
        held = os.open(top / "f", os.O_RDONLY)
        if not busy:
            os.close(held)
        os.kill(union.pid, signal.SIGTERM)
        eventually(lambda: mounts(union) == [], "the mount is gone")
        if busy:
            union.expect_log("is in use")
            assert os.pread(held, 9, 0) == b"R"
            os.close(held)
        assert union.wait() == 0

    as_plain_user(scenario)


@pytest.mark.parametrize("busy", [False, True])
def test_unmounted_by_a_signal_where_the_helper_cannot(busy: bool) -> None:
    """As in a tree without /etc/mtab: umount(8) does it then."""

    def replace(root: Path) -> None:
        (root / "bin").mkdir()
        helper = root / "bin/fusermount3"
        helper.write_text(
            "#!/bin/sh\n"
            'case $1 in -u) echo "fusermount3: not found in /etc/mtab" >&2; exit 1;; esac\n'
            'exec /usr/bin/fusermount3 "$@"\n'
        )
        helper.chmod(0o4755)

    def scenario(union: Union) -> None:
        os.environ["PATH"] = "/mnt/bin:" + os.environ["PATH"]
        fill(union.R, "f")
        top = union.start()
        held = os.open(top / "f", os.O_RDONLY)
        if busy:
            union.expect_log("is in use")
        else:
            os.close(held)
        os.kill(union.pid, signal.SIGTERM)
        eventually(lambda: mounts(union) == [], "the mount is gone")
        if busy:
            os.close(held)
        assert union.wait() == 0

    as_plain_user(scenario, replace)


def test_a_source_with_what_separates_options() -> None:
    def scenario(union: Union) -> str:
        fill(union.R, "f")
        arguments = [r"a,b c\d", *union.arguments()[1:]]
        union.arguments = lambda: arguments  # type: ignore[method-assign]
        union.start()
        ((source, *_),) = mounts(union)
        return source

    assert as_plain_user(scenario) == r"a,b\040c\134d"


@pytest.mark.parametrize(
    ("options", "configuration", "shown", "warned"),
    [
        ("", "", False, False),
        ("allow_other", "", False, True),
        ("allow_other", "# user_allow_other\n", False, True),
        ("allow_other", "mount_max = 9\n user_allow_other # yes\n", True, False),
        ("", "user_allow_other\n", True, False),
        ("", "user_allow_other", False, False),  # the helper wants the line to end
    ],
)
def test_others_may_use_it_where_the_administrator_lets_them(
    options: str, configuration: str, shown: bool, warned: bool
) -> None:
    def scenario(union: Union) -> tuple[str, str]:
        fill(union.R, "f")
        arguments = [*union.arguments(), *(["-o", options] if options else [])]
        union.arguments = lambda: arguments  # type: ignore[method-assign]
        done = union.command()
        ((_, _, _, flags, _, _),) = mounts(union)
        subprocess.run(["fusermount3", "-u", union.mount], check=True)
        eventually(lambda: not list(union.state.iterdir()), "the daemon has ended")
        return flags, done.stderr

    flags, messages = as_plain_user(scenario, configuration=configuration)
    assert ("allow_other" in flags.split(",")) is shown
    assert ("user_allow_other in /etc/fuse.conf" in messages) is warned
    assert messages.count("\n") == warned


def test_a_foreign_owner_s_file_cannot_be_changed() -> None:
    """Its copy would have to belong to somebody else."""

    def below(root: Path) -> None:
        (root / "foreign").mkdir()
        (root / "foreign/f").write_text("foreign")
        os.chown(root / "foreign/f", 4711, 4711)
        (root / "foreign/f").chmod(0o666)

    def scenario(union: Union) -> None:
        union.ignore_branches("it lies elsewhere")
        union.branch("M").rmdir()
        (union.base / "M").symlink_to(Path("/mnt/foreign"))
        top = union.start("W=rw", "M=ro+wh")
        assert (top / "f").stat().st_uid == 4711
        with fails("EPERM"):
            (top / "f").write_text("x")
        with fails("EPERM"):
            os.chmod(top / "f", 0o600)
        assert (top / "f").read_text() == "foreign"
        assert not (union.W / "f").exists()

    as_plain_user(scenario, prepare=below)


def test_nothing_of_what_only_root_can_do() -> None:
    def scenario(union: Union) -> None:
        fill(union.R, "f")
        top = union.start()
        with fails("EPERM"):
            os.mknod(top / "null", 0o020666, os.makedev(1, 3))
        with fails("EPERM"):
            os.chown(top / "f", 4711, 4711)
        with fails("EPERM", "EOPNOTSUPP"):
            os.setxattr(top / "f", "trusted.k", b"v")
        assert os.listdir(top) == ["f"]

    as_plain_user(scenario)


def refused(
    prepare: Callable[[Path], object] = lambda _: None,
    change: Callable[[Union], object] = lambda _: None,
) -> str:
    """Return the message with which the command refuses; it must leave nothing behind."""

    def scenario(union: Union) -> str:
        fill(union.R, "f")
        change(union)
        done = union.command()
        assert done.returncode == 1
        assert not list(union.state.iterdir())
        assert os.listdir(union.W) == []
        assert mounts(union) == []
        return done.stderr

    message = as_plain_user(scenario, prepare)
    assert message.count("\n") == 1
    assert message.startswith("fuse-aufs: ")
    return message


def test_the_error_without_the_helper() -> None:
    def hide(union: Union) -> None:
        os.environ["PATH"] = str(union.base)

    message = refused(change=hide)
    assert "EPERM" in message
    assert "fusermount3" in message
    assert "unshare -Urm" in message


def test_the_error_when_the_helper_may_not_do_it_either() -> None:
    """Set-user-id counts for nothing where the program lies on a filesystem mounted nosuid."""

    def copy(root: Path) -> None:
        (root / "bin").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "nosuid", "none", root / "bin"], check=True)
        subprocess.run(["cp", "-p", "/usr/bin/fusermount3", root / "bin"], check=True)

    def prefer(_: Union) -> None:
        os.environ["PATH"] = "/mnt/bin:" + os.environ["PATH"]

    message = refused(copy, prefer)
    assert "cannot be mounted (EPERM): mount failed: Operation not permitted" in message


def test_the_error_for_a_mount_point_of_somebody_else() -> None:
    def take(root: Path) -> None:
        (root / "theirs").mkdir(mode=0o755)

    def use(union: Union) -> None:
        union.mount.rmdir()
        union.mount.symlink_to("/mnt/theirs")

    message = refused(take, use)
    assert "/mnt/theirs is not yours to cover (EACCES)" in message
    assert "write permission" in message


def test_the_error_for_the_temporary_directory_itself() -> None:
    """Everybody may write there, but with the sticky bit only the owner may cover it."""

    def make(root: Path) -> None:
        (root / "tmp").mkdir()
        (root / "tmp").chmod(0o1777)

    def use(union: Union) -> None:
        union.mount.rmdir()
        union.mount.symlink_to("/mnt/tmp")

    assert "/mnt/tmp is not yours to cover (EPERM)" in refused(make, use)


def test_the_error_for_a_device_that_only_root_may_use() -> None:
    message = refused(lambda root: (root / "fuse").chmod(0o600))
    assert "/dev/fuse (EACCES)" in message
