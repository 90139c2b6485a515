"""The union of a plain user: root only inside a user namespace of its own (``unshare -Urm``).

Inside, /dev/fuse is a node of the test's own with mode 0666, bound over the host's in a private
mount namespace; the host's is not touched.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mounting import Union
from tests.support.oracle import symbol_of
from tests.support.overlay_trees import ANYBODY, acl
from tests.support.processes import in_user_namespace
from tests.support.trees import assert_whiteout, fails, fill, paths


def inside(
    scenario: Callable[[Union], object], prepare: Callable[[Path], object] | None = None
) -> None:
    """Run a scenario with a union of its own as root of a user namespace."""

    def run(place: Path) -> None:
        union = Union(place)
        try:
            scenario(union)
            union.finish()
        finally:
            union.take_down()

    in_user_namespace(run, prepare=prepare)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("options", ["", "profile=driver", "udba=none,noplink"])
def test_everyday_work(options: str) -> None:
    def scenario(union: Union) -> None:
        fill(union.R, "f", "d/x", "d/y", "gone", "e/z")
        (union.R / "f").chmod(0o640)
        os.setxattr(union.R / "f", "user.k", b"v")
        top = union.start(options=options)
        assert (top / "f").read_text() == "R"
        with (top / "f").open("a") as file:
            file.write("+")
        assert (union.W / "f").read_text() == "R+"
        status = (union.W / "f").stat()
        assert (stat.S_IMODE(status.st_mode), status.st_uid) == (0o640, 0)
        assert os.getxattr(top / "f", "user.k") == b"v"
        os.unlink(top / "gone")
        assert_whiteout(union.W, "gone")
        os.mkdir(top / "new")
        os.rename(top / "d/x", top / "new/x")
        os.symlink("x", top / "new/link")
        os.mkfifo(top / "new/pipe")
        os.link(top / "d/y", top / "new/y")
        os.chmod(top / "new", 0o2750)
        subprocess.run(["rm", "-r", top / "e"], check=True)
        os.mkdir(top / "e")
        assert os.listdir(top / "e") == []
        assert (union.W / "e/.wh..wh..opq").exists()
        assert set(os.listdir(top)) == {"f", "d", "new", "e"}

    inside(scenario)


STRANGE = acl(
    (0x01, 6, ANYBODY), (0x02, 6, 2009), (0x04, 4, ANYBODY), (0x10, 6, ANYBODY), (0x20, 4, ANYBODY)
)


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("profile", ["driver", "aufs,acl", "aufs"])
def test_an_acl_that_names_somebody_outside(profile: str) -> None:
    """The project of a user with an ACL for a colleague, seen in a rootless container."""

    def prepare(place: Path) -> None:
        lower = place / "home/R"
        fill(lower, "f", "g", "d/x", "dacl/")
        for name in ("f", "g", "d", "dacl"):
            os.setxattr(lower / name, "system.posix_acl_access", STRANGE)
        os.setxattr(lower / "dacl", "system.posix_acl_default", STRANGE)
        for path in (lower, *lower.rglob("*")):
            os.chown(path, 1000, 1000)

    def scenario(union: Union) -> None:
        union.expect_log("whose ids are not mapped")
        top = union.start(options=f"profile={profile}")
        assert (top / "f").read_text() == "R"
        (top / "f").write_text("changed")
        (top / "g").rename(top / "h")
        (top / "d").chmod(0o700)
        (top / "d/new").write_text("new")
        (top / "dacl/sub").mkdir()
        if profile != "aufs":
            shown = os.getxattr(top / "f", "system.posix_acl_access")
            assert shown == acl(*((tag, right, ANYBODY) for tag, right in NOBODY_NAMED))
        assert paths(union.W) == {"f", ".wh.g", "h", "d", "d/new", "dacl", "dacl/sub"}

    inside(scenario, prepare)


NOBODY_NAMED = ((0x01, 6), (0x04, 4), (0x10, 6), (0x20, 4))


@pytest.mark.usefixtures("warm")
def test_what_is_not_allowed_there() -> None:
    """Devices, and owners that the namespace does not know: an errno, never a silent change."""

    def scenario(union: Union) -> None:
        fill(union.R, "f", "d/")
        top = union.start()
        with fails("EPERM"):
            os.mknod(top / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        with fails("EINVAL", "EPERM"):
            os.chown(top / "f", 4711, 4711)
        assert symbol_of(os.setxattr, top / "f", "trusted.k", b"v") in ("EPERM", "EOPNOTSUPP")
        assert paths(union.W) <= {"f"}
        assert (top / "f").read_text() == "R"
        assert (top / "f").stat().st_uid == 0

    inside(scenario)


@pytest.mark.usefixtures("warm")
def test_a_foreign_owner_s_file_cannot_be_copied_up() -> None:
    """A lower file of an owner outside of the map: the copy would belong to somebody else."""

    def scenario(union: Union) -> None:
        # Made by the real root before: see ``below``.
        foreign = Path("/mnt/foreign")
        union.ignore_branches("it lies elsewhere")
        union.branch("M").rmdir()
        (union.base / "M").symlink_to(foreign)
        top = union.start("W=rw", "M=ro+wh")
        assert (top / "f").read_text() == "foreign"
        assert (top / "f").stat().st_uid == 65534
        before = paths(union.W)
        assert symbol_of(os.chmod, top / "f", 0o666) in ("EPERM", "EINVAL", "EOVERFLOW")
        assert symbol_of((top / "f").write_text, "x") in ("EPERM", "EINVAL", "EOVERFLOW", "EACCES")
        assert paths(union.W) == before
        assert (top / "f").read_text() == "foreign"

    def below(root: Path) -> None:
        (root / "foreign").mkdir()
        (root / "foreign/f").write_text("foreign")
        os.chown(root / "foreign/f", 4711, 4711)
        (root / "foreign/f").chmod(0o644)

    inside(scenario, prepare=below)
