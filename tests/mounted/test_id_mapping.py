"""Id mapping on real mounts: who owns a file on its branch and who is shown as its owner."""

from __future__ import annotations

import os
import subprocess
from functools import partial
from pathlib import Path

from tests.support.calls import bind_id_mapped
from tests.support.mounting import Union
from tests.support.oracle import symbol_of
from tests.support.trees import paths


def owner(path: Path) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_uid, status.st_gid


MAPPING = "uidmapping=:0:100000:1000,gidmapping=:0:200000:1000"


def test_owners_are_shown_and_stored_by_the_mapping(union: Union) -> None:
    (union.R / "f").write_text("f")
    os.chown(union.R / "f", 5, 6)
    (union.R / "outside").write_text("o")
    os.chown(union.R / "outside", 5000, 6)
    mnt = union.start(options=f"profile=driver,{MAPPING}")
    assert owner(mnt / "f") == (100005, 200006)
    assert owner(mnt / "outside") == (65534, 200006)
    os.chown(mnt / "f", 100007, 200008)
    assert owner(mnt / "f") == (100007, 200008)
    assert owner(union.W / "f") == (7, 8)


def test_what_is_not_covered_is_changed_by_nobody(union: Union) -> None:
    """It is shown as the user nobody, who would get the files of whoever has no other number."""
    for name in ("f", "suid"):
        (union.R / name).write_text("f")
        os.chown(union.R / name, 5000, 5000)
    (union.R / "suid").chmod(0o4777)
    mnt = union.start(options=f"profile=driver,{MAPPING}")
    before = paths(union.W)

    def attempts() -> list[str]:
        return [
            symbol_of(os.open, "f", os.O_WRONLY),
            symbol_of(os.open, "suid", os.O_WRONLY),
            symbol_of(os.chmod, "f", 0o777),
            symbol_of(os.setxattr, "f", "user.k", b"v"),
        ]

    for user in (65534, 0, 100000):
        assert set(union.as_user(user, user, attempts)) <= {"EACCES", "EPERM", "EOVERFLOW"}
    assert owner(mnt / "f") == owner(mnt / "suid") == (65534, 65534)
    assert paths(union.W) == before


def test_what_is_created_is_stored_by_the_mapping(union: Union) -> None:
    (union.R / "d").mkdir()
    os.chmod(union.R / "d", 0o777)
    mnt = union.start(options=f"profile=driver,{MAPPING}")

    def create() -> None:
        Path("d/file").write_text("x")
        Path("d/dir").mkdir()
        Path("d/link").symlink_to("file")

    union.as_user(100042, 200043, create)
    for name in ("file", "dir", "link"):
        assert owner(mnt / "d" / name) == (100042, 200043)
        assert owner(union.W / "d" / name) == (42, 43)


def test_copy_up_keeps_what_is_stored(union: Union) -> None:
    (union.R / "f").write_text("f")
    os.chown(union.R / "f", 5, 6)
    os.setxattr(union.R / "f", "security.capability", CAPABILITY)
    mnt = union.start(options=f"profile=driver,{MAPPING}")
    os.utime(mnt / "f")
    assert owner(union.W / "f") == (5, 6)
    assert "security.capability" not in os.listxattr(union.W / "f"), "it would be another's"


# cap_net_bind_service=ep, version 2
CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")


def test_squashed_owners(union: Union) -> None:
    (union.R / "f").write_text("f")
    os.chown(union.R / "f", 5, 6)
    mnt = union.start(options="profile=driver,squash_to_uid=1,squash_to_gid=2")
    assert owner(mnt / "f") == (1, 2)
    os.chown(mnt / "f", 77, 78)
    assert owner(mnt / "f") == (1, 2)
    assert owner(union.W / "f") == (77, 78)


def test_ids_outside_of_an_id_mapped_lower(union: Union) -> None:
    """The kernel shows them as nobody, and nobody is a user of ours."""
    plain = union.branch("plain")
    for name, user in (("inside", 100_005), ("nobodys", 165_534), ("outside", 5), ("open", 5)):
        (plain / name).write_text(name)
        os.chown(plain / name, user, user)
    (plain / "open").chmod(0o666)
    bind_id_mapped(plain, union.branch("M"), 100_000, 0, 65_536)
    try:
        union.ignore_branches("the lower one is a mount")
        mnt = union.start("W=rw", "M=ro+wh", options="profile=driver")
        nobody = 65_534
        assert owner(mnt / "inside") == (5, 5)
        for name in ("nobodys", "outside", "open"):
            assert owner(mnt / name) == (nobody, nobody)

        def change(name: str) -> list[str]:
            return [symbol_of(os.open, name, os.O_WRONLY), symbol_of(os.chmod, name, 0o640)]

        for user in (nobody, 0):
            for name in ("outside", "open"):
                assert union.as_user(user, user, partial(change, name)) == ["EACCES", "EOVERFLOW"]
        assert union.as_user(nobody, nobody, lambda: change("nobodys")) == ["ok", "ok"]
        assert union.as_user(5, 5, lambda: change("inside")) == ["ok", "ok"]
        assert owner(union.W / "nobodys") == (nobody, nobody)
        assert owner(union.W / "inside") == (5, 5)
        union.stop()
    finally:
        subprocess.run(["umount", "-l", union.base / "M"], check=True)
