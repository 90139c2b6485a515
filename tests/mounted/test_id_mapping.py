"""Id mapping on real mounts: who owns a file on its branch and who is shown as its owner."""

from __future__ import annotations

import os
from pathlib import Path

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
