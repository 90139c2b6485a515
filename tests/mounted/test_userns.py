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
    scenario: Callable[[Union], object],
    prepare: Callable[[Path], object] | None = None,
    *,
    uid: int = 1000,
    ids: int = 1,
) -> None:
    """Run a scenario with a union of its own as root of a user namespace."""

    def run(place: Path) -> None:
        union = Union(place)
        try:
            scenario(union)
            union.finish()
        finally:
            union.take_down()

    in_user_namespace(run, prepare=prepare, uid=uid, ids=ids)


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


@pytest.mark.usefixtures("warm")
@pytest.mark.parametrize("options", ["profile=driver", "profile=aufs"])
def test_nobody_is_not_the_owner_of_what_has_no_owner_here(options: str) -> None:
    """In a namespace of many ids nobody is a user, whose number all unmapped owners have, too."""
    nobody, base = 65534, 100_000

    def below(root: Path) -> None:
        lower = root / "foreign"
        fill(lower, "strange", "suid", "strange-d/f", "own", "open", "own-d/f")
        (lower / "suid").chmod(0o4755)
        (lower / "open").chmod(0o666)
        for name in ("own", "own-d", "own-d/f"):
            os.chown(lower / name, base + nobody, base + nobody)
        (lower / "strange-d/deeper").mkdir()
        os.chown(lower / "strange-d/deeper", base + 5, base + 5)
        (lower / "strange-d/deeper").chmod(0o777)

    def scenario(union: Union) -> None:
        union.ignore_branches("it lies elsewhere")
        union.branch("M").rmdir()
        (union.base / "M").symlink_to("/mnt/foreign")
        for path in (union.base, *union.base.parents):
            if path != Path("/") and path != Path("/mnt"):
                path.chmod(0o755)
        top = union.start("W=rw", "M=ro+wh", options=options)
        before = paths(union.W)
        for name in ("strange", "suid", "strange-d", "open"):
            status = os.lstat(top / name)
            assert (status.st_uid, status.st_gid) == (nobody, nobody), name

        def attempts() -> list[str]:
            return [
                symbol_of(os.open, "strange", os.O_WRONLY),
                symbol_of(os.chmod, "suid", 0o4777),
                symbol_of(os.chmod, "open", 0o777),
                symbol_of(os.open, "open", os.O_WRONLY),
                symbol_of(os.utime, "strange", (0, 0)),
                symbol_of(os.setxattr, "strange", "user.k", b"v"),
                symbol_of(os.mkdir, "strange-d/new"),
                symbol_of(os.unlink, "strange-d/f"),
                symbol_of(os.rename, "strange", "other"),
                # The directory on the way would have to change hands.
                symbol_of(os.mkdir, "strange-d/deeper/new"),
            ]

        refused = {"EACCES", "EPERM", "EOVERFLOW"}
        for user in (nobody, 0):
            seen = union.as_user(user, user, attempts)
            assert [code for code in seen if code not in refused] == [], " ".join(seen)
        assert paths(union.W) == before

        def own() -> None:
            Path("own").write_text("changed")
            os.chmod("own", 0o600)
            os.mkdir("own-d/new")
            os.unlink("own-d/f")

        union.as_user(nobody, nobody, own)
        assert (union.W / "own").stat().st_uid == nobody
        assert (union.W / "own").read_text() == "changed"

    inside(scenario, prepare=below, uid=base, ids=65_536)
