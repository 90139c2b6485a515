"""Parity of the calls that change attributes: mode, owner, times, extended attributes; and access.

Of each call: who may, what it clears on the side, and which times it changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

import pytest

from tests.support.deviations import unexplained
from tests.support.parity import Comparison, Parity, Table, attempt, comparisons
from tests.support.syscalls import (
    AT_EACCESS,
    AT_SYMLINK_NOFOLLOW,
    UTIME_NOW,
    UTIME_OMIT,
    faccessat,
    futimens,
    utimensat,
    utimensat_now,
)
from tests.support.things import (
    ALICE,
    BOB,
    EVERYBODY,
    KINDS,
    ROOT,
    file,
    folder,
    hardlink,
    symlink,
    thing,
)

table = Table()
add = table.add


def with_descriptor(flags: int, call: Callable[[int], object], *, unlinked: bool = False) -> object:
    """Call with a descriptor of ``d/x``."""
    fd = os.open("d/x", flags)
    try:
        if unlinked:
            os.unlink("d/x")
        return attempt(lambda: call(fd)), f"{os.fstat(fd).st_mode:o}", os.fstat(fd).st_uid
    finally:
        os.close(fd)


# Mode

for kind in KINDS:
    things = {"d": folder(0o777), "d/x": thing(kind, 0o644, ALICE)}
    if kind != "symlink":
        add(f"chmod {kind}", things, partial(os.chmod, "d/x", 0o111), *EVERYBODY)
        add(f"chmod {kind} to the same", things, partial(os.chmod, "d/x", 0o644), ALICE)
        for mode in (0o7777, 0o2000):
            add(f"chmod {kind} {mode:o}", things, partial(os.chmod, "d/x", mode), ALICE)
        for group in (50, 2001):
            add(
                f"chmod {kind} setgid of group {group}",
                {"d": folder(), "d/x": thing(kind, 0o644, ALICE, group)},
                partial(os.chmod, "d/x", 0o6755),
                ALICE,
            )
    add(
        f"chmod through a link to {kind}",
        {"d": folder(), "d/x": thing(kind, owner=ALICE), "l": symlink("d/x")},
        partial(os.chmod, "l", 0o700),
        ALICE,
    )
for flags, about in ((os.O_RDONLY, "reading"), (os.O_RDWR, "writing"), (os.O_PATH, "path")):
    things = {"d": folder(0o777), "d/x": file(0o644, ALICE)}
    for unlinked in (False, True):
        suffix = f"({about}{', unlinked' if unlinked else ''})"
        for name, call in (
            ("fchmod", lambda fd: os.fchmod(fd, 0o4751)),
            ("fchown", lambda fd: os.fchown(fd, ALICE.uid, 2001)),
            ("futimens", lambda fd: futimens(fd, (5, 6), (7, 8))),
            ("futimens now", lambda fd: futimens(fd, (0, UTIME_NOW), (0, UTIME_OMIT))),
            ("fsetxattr", lambda fd: os.setxattr(fd, "user.k", b"v")),
        ):
            add(
                f"{name} {suffix}",
                things,
                partial(with_descriptor, flags, call, unlinked=unlinked),
                ALICE,
            )
add(
    "chmod one of two names",
    {"d": folder(), "d/x": file(), "e": folder(), "e/y": hardlink("d/x")},
    partial(os.chmod, "e/y", 0o600),
)

# Owner

OWNERS = (
    (-1, -1),
    (ALICE.uid, -1),
    (-1, ALICE.gid),
    (-1, 2001),
    (-1, 2002),
    (-1, 50),
    (BOB.uid, -1),
    (ALICE.uid, 2001),
    (BOB.uid, 2001),
    (0, 0),
)
for uid, gid in OWNERS:
    for mode in (0o6755, 0o2745):
        add(
            f"chown {mode:o} to {uid}:{gid}",
            {"d": folder(), "d/x": file(mode, ALICE)},
            partial(os.chown, "d/x", uid, gid),
            *(EVERYBODY if mode == 0o6755 else (ALICE,)),
        )
    for kind in ("dir", "symlink"):
        add(
            f"lchown {kind} to {uid}:{gid}",
            {"d": folder(), "d/x": thing(kind, 0o6755, ALICE)},
            partial(os.lchown, "d/x", uid, gid),
            ROOT,
            ALICE,
        )
for kind in KINDS:
    add(
        f"chown {kind}",
        {"d": folder(), "d/x": thing(kind, owner=ALICE)},
        partial(os.chown, "d/x", 7, 8, follow_symlinks=False),
        *EVERYBODY,
    )
    add(
        f"chown through a link to {kind}",
        {"d": folder(), "d/x": thing(kind), "l": symlink("d/x")},
        partial(os.chown, "l", 7, 8),
    )

# Times

TIMES = {
    "both": ((5, 6), (7, 8)),
    "now": ((0, UTIME_NOW), (0, UTIME_NOW)),
    "omit": ((0, UTIME_OMIT), (0, UTIME_OMIT)),
    "access only": ((5, 6), (0, UTIME_OMIT)),
    "change only": ((0, UTIME_OMIT), (7, 8)),
    "access now": ((0, UTIME_NOW), (0, UTIME_OMIT)),
    "change now": ((0, UTIME_OMIT), (0, UTIME_NOW)),
    "access now, change": ((0, UTIME_NOW), (7, 8)),
    "access, change now": ((5, 6), (0, UTIME_NOW)),
    "before 1970": ((-5, 6), (-7, 8)),
    "after 2038": ((1 << 31, 6), (1 << 32, 8)),
    "too many nanoseconds": ((5, 10**9), (7, 8)),
    "negative nanoseconds": ((5, 6), (7, -1)),
}


def timed(path: str, about: str, flags: int) -> object:
    utimensat(path, *TIMES[about], flags)
    status = os.lstat(path)
    moments = (status.st_atime_ns, status.st_mtime_ns)
    return ["now" if m > 1_500_000_000 * 10**9 and m < 2**31 * 10**9 else m for m in moments]


for about in TIMES:
    add(
        f"utimensat {about}",
        {"d": folder(), "d/x": file(0o666, ALICE)},
        partial(timed, "d/x", about, 0),
        *EVERYBODY,
    )
    add(
        f"utimensat {about}, read-only",
        {"d": folder(), "d/x": file(0o444)},
        partial(timed, "d/x", about, 0),
        ALICE,
    )
for about in ("both", "omit"):
    for kind in KINDS:
        add(
            f"utimensat {about} of {kind}",
            {"d": folder(), "d/x": thing(kind, owner=ALICE)},
            partial(timed, "d/x", about, AT_SYMLINK_NOFOLLOW),
            ALICE,
        )
add("utimensat without times", {"x": file(0o666)}, partial(utimensat_now, "x"), *EVERYBODY)
add("utimensat read-only", {"x": file(0o444)}, partial(utimensat_now, "x"), *EVERYBODY)
add("utimensat with bad flags", {"x": file()}, partial(utimensat_now, "x", 1))
add("utimensat of a link", {"x": symlink("no")}, partial(utimensat_now, "x", AT_SYMLINK_NOFOLLOW))

# Access

MODES = (0o000, 0o100, 0o040, 0o002, 0o644, 0o750, 0o077, 0o607)
ACCESSED = {
    f"{kind} {mode:o} {group}": thing(kind, mode, ALICE, group)
    for kind in ("file", "dir")
    for mode in MODES
    for group in (2001, 2002)
}
add(
    "access",
    ACCESSED,
    lambda: {
        f"{name} {wanted}": attempt(partial(faccessat, name, wanted))
        for name in ACCESSED
        for wanted in range(8)
    },
    *EVERYBODY,
)


def access_as_set_user_id() -> object:
    """The real user asks, the effective one would open."""
    os.setresuid(ALICE.uid, 0, 0)
    try:
        return [
            attempt(partial(faccessat, name, wanted, flags))
            for name in ("mine", "theirs")
            for wanted in (os.R_OK, os.W_OK, os.X_OK)
            for flags in (0, AT_EACCESS)
        ]
    finally:
        os.setresuid(0, 0, 0)


add(
    "access by real and effective user",
    {"mine": file(0o700, ALICE), "theirs": file(0o700, BOB)},
    access_as_set_user_id,
)


def execute() -> object:
    os.posix_spawn("x", ["x"], {})
    return os.waitstatus_to_exitcode(os.wait()[1])


for mode in (0o555, 0o050, 0o005, 0o600):
    add(
        f"execute {mode:o}",
        {"x": file(mode, ALICE, gid=2002, text="#!/bin/sh\nexit 0\n")},
        execute,
        *EVERYBODY,
    )

# Extended attributes

XATTR_CALLS: dict[str, Callable[[], object]] = {
    "set user": lambda: os.setxattr("d/x", "user.k", b"v", follow_symlinks=False),
    "set trusted": lambda: os.setxattr("d/x", "trusted.k", b"v", follow_symlinks=False),
    "set security": lambda: os.setxattr("d/x", "security.k", b"v", follow_symlinks=False),
    "set of no class": lambda: os.setxattr("d/x", "nothing", b"v", follow_symlinks=False),
    "set empty": lambda: os.setxattr("d/x", "user.k", b"", follow_symlinks=False),
    "set long": lambda: os.setxattr("d/x", "user." + "k" * 250, b"v", follow_symlinks=False),
    "set too long": lambda: os.setxattr("d/x", "user." + "k" * 251, b"v", follow_symlinks=False),
    "set too big": lambda: os.setxattr("d/x", "user.k", b"v" * 65537, follow_symlinks=False),
    "create": lambda: os.setxattr("d/x", "user.k", b"v", os.XATTR_CREATE, follow_symlinks=False),
    "replace": lambda: os.setxattr("d/x", "user.k", b"v", os.XATTR_REPLACE, follow_symlinks=False),
    "get": lambda: os.getxattr("d/x", "user.k", follow_symlinks=False),
    "get trusted": lambda: os.getxattr("d/x", "trusted.k", follow_symlinks=False),
    "list": lambda: sorted(os.listxattr("d/x", follow_symlinks=False)),
    "remove": lambda: os.removexattr("d/x", "user.k", follow_symlinks=False),
    "set twice": lambda: [
        attempt(partial(os.setxattr, "d/x", "user.k", b"v", follow_symlinks=False)),
        attempt(
            partial(os.setxattr, "d/x", "user.k", b"w", os.XATTR_CREATE, follow_symlinks=False)
        ),
        attempt(
            partial(os.setxattr, "d/x", "user.k", b"x", os.XATTR_REPLACE, follow_symlinks=False)
        ),
        attempt(partial(os.getxattr, "d/x", "user.k", follow_symlinks=False)),
        attempt(partial(os.removexattr, "d/x", "user.k", follow_symlinks=False)),
        attempt(partial(os.removexattr, "d/x", "user.k", follow_symlinks=False)),
    ],
}
for name, xattr_call in XATTR_CALLS.items():
    things = {"d": folder(), "d/x": file(0o644, ALICE)}
    add(f"xattr, {name}", things, xattr_call, *EVERYBODY)
for kind in KINDS:
    for name, actor in (("set user", ALICE), ("set trusted", ROOT), ("get", ALICE), ("list", ROOT)):
        things = {"d": folder(), "d/x": thing(kind, owner=ALICE)}
        add(f"xattr, {name} of {kind}", things, XATTR_CALLS[name], actor)
add(
    "xattr of somebody's directory with the sticky bit",
    {"d": folder(), "d/x": folder(0o1777)},
    XATTR_CALLS["set user"],
    ALICE,
)

COMPARISONS = comparisons(table.cases)


@pytest.mark.parametrize("one", COMPARISONS, ids=str)
def test_parity(unions: Callable[[str], Parity], one: Comparison) -> None:
    different = unexplained(one, *unions(one.profile).compare(one))
    assert not different, "\n" + "\n".join(different)
