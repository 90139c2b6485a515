"""Extended attributes: flags, errnos, who may see what, and the marks nobody inside may forge.

Each scenario is run in a plain directory too (``tests/support/oracle.py``).
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.calls import getxattr_into, listxattr_into
from tests.support.mounting import Union
from tests.support.oracle import Oracle, symbol_of
from tests.support.trees import fails, fill, paths

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE


def build(place: Path) -> None:
    (place / "f").write_text("f")
    (place / "d").mkdir()
    (place / "link").symlink_to("f")
    os.mkfifo(place / "pipe")
    for name in ("f", "d"):
        os.setxattr(place / name, "user.old", b"value")
        os.setxattr(place / name, "trusted.t", b"secret")


def test_flags_and_errnos(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        seen: list[object] = []
        for name in ("f", "d"):
            path = top / name
            seen.extend(
                (
                    symbol_of(os.setxattr, path, "user.old", b"x", CREATE),
                    symbol_of(os.setxattr, path, "user.new", b"x", REPLACE),
                    symbol_of(os.setxattr, path, "user.new", b"x", CREATE),
                    symbol_of(os.setxattr, path, "user.old", b"changed", REPLACE),
                    symbol_of(os.setxattr, path, "user.empty", b""),
                    os.getxattr(path, "user.old"),
                    os.getxattr(path, "user.empty"),
                    sorted(os.listxattr(path)),
                    symbol_of(os.getxattr, path, "user.absent"),
                    symbol_of(os.removexattr, path, "user.absent"),
                    symbol_of(os.removexattr, path, "user.old"),
                    symbol_of(os.getxattr, path, "user.old"),
                    symbol_of(os.setxattr, path, "nonsense", b"x"),
                    symbol_of(os.setxattr, path, "user." + "n" * 251, b"x"),
                    symbol_of(os.setxattr, path, "user.big", b"x" * 65537),
                )
            )
        seen.extend(
            (
                symbol_of(os.setxattr, top / "pipe", "user.k", b"x"),
                symbol_of(os.setxattr, top / "link", "user.k", b"x", follow_symlinks=False),
                symbol_of(os.setxattr, top / "absent", "user.k", b"x"),
                os.listxattr(top / "pipe"),
            )
        )
        return seen

    oracle.same(scenario)


def test_buffers_that_are_too_small(oracle: Oracle) -> None:
    oracle.start(build)

    def scenario(top: Path) -> object:
        return (
            getxattr_into(top / "f", b"user.old", 0),
            getxattr_into(top / "f", b"user.old", 5),
            symbol_of(getxattr_into, top / "f", b"user.old", 4),
            listxattr_into(top / "f", 0),
            symbol_of(listxattr_into, top / "f", 3),
        )

    oracle.same(scenario)


def test_large_values_and_many_names(union: Union) -> None:
    # What a tmpfs can hold is more than an ext4 inode can.
    union.tmpfs("W", "32m")
    fill(union.R, "f")
    top = union.start()
    for number in range(200):
        os.setxattr(top / "f", f"trusted.{number:03}", b"%d" % number)
    os.setxattr(top / "f", "trusted.large", b"x" * 60000)
    assert len(os.listxattr(top / "f")) == 201
    assert os.getxattr(top / "f", "trusted.large") == b"x" * 60000
    assert os.getxattr(top / "f", "trusted.199") == b"199"


def test_who_may_see_and_set(oracle: Oracle) -> None:
    oracle.start(build)

    def scenario(top: Path) -> object:
        return (
            os.listxattr(top / "f"),
            symbol_of(os.getxattr, top / "f", "trusted.t"),
            symbol_of(os.setxattr, top / "f", "trusted.t", b"x"),
            os.getxattr(top / "f", "user.old"),
            symbol_of(os.setxattr, top / "f", "user.old", b"x"),
        )

    oracle.same_as(1000, 1000, scenario)


# cap_net_raw=ep, in the form of version 2.
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")


def test_a_capability_is_lost_by_a_change_of_content(oracle: Oracle, udba: str) -> None:
    def build_program(place: Path) -> None:
        for name in ("written", "cut", "chowned", "kept"):
            (place / name).write_text("program")
            (place / name).chmod(0o777)
            os.setxattr(place / name, "security.capability", CAPABILITY)

    oracle.start(build_program, options=udba)

    def scenario(top: Path) -> object:
        with (top / "written").open("a") as file:
            file.write("+")
        os.truncate(top / "cut", 1)
        os.chown(top / "chowned", 1, 1)
        os.chmod(top / "kept", 0o755)
        return [os.listxattr(top / name) for name in ("written", "cut", "chowned", "kept")]

    oracle.same(scenario)


def test_an_acl_that_is_not_there_can_be_removed(oracle: Oracle) -> None:
    oracle.start(lambda place: fill(place, "f", "d/x"), options="acl")

    def scenario(top: Path) -> list[str]:
        return [
            symbol_of(os.removexattr, top / name, f"system.posix_acl_{kind}")
            for name in ("f", "d")
            for kind in ("access", "default")
        ]

    oracle.same(scenario)


@pytest.mark.parametrize("user", [0, 1000])
@pytest.mark.parametrize("capable", [True, False])
def test_who_takes_set_user_id_away(oracle: Oracle, udba: str, user: int, capable: bool) -> None:
    """What root writes keeps it, also where the write has just taken a capability away."""
    names = [f"{mode:o}{it}" for mode in (0o6777, 0o2767) for it in ("written", "cut", "chowned")]

    def build_programs(place: Path) -> None:
        for name in names:
            (place / name).write_text("program")
            os.chown(place / name, user, user)
            (place / name).chmod(int(name[:4], 8))
            if capable:
                os.setxattr(place / name, "security.capability", CAPABILITY)

    oracle.start(build_programs, options=udba)

    def scenario(top: Path) -> object:
        modes = []
        for name in names:
            file = top / name
            if name.endswith("written"):
                with file.open("a") as stream:
                    stream.write("+")
            elif name.endswith("cut"):
                os.truncate(file, 1)
            # A change of owner that changes nothing spares nobody.
            modes.append(file.stat().st_mode)
            os.chown(file, -1, -1)
            modes.append(file.stat().st_mode)
        return modes, [os.listxattr(top / name) for name in names]

    oracle.same_as(user, user, scenario)


@pytest.mark.parametrize(
    "key",
    ["trusted.overlay.opaque", "trusted.overlay.whiteout", "user.overlay.opaque"],
)
@pytest.mark.parametrize("profile", ["aufs", "driver"])
def test_marks_cannot_be_forged(union: Union, profile: str, key: str) -> None:
    fill(union.R, "d/x")
    top = union.start(options=f"profile={profile}")
    with fails("EPERM"):
        os.setxattr(top / "d", key, b"y")
    assert paths(union.W) == set()
