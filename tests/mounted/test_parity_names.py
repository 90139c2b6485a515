"""Parity of the calls that make, move and remove names, done as they should be done.

Results, what there is afterwards, and which times of the object and of its parents have changed
(``tests/support/parity.py``). What fails is in ``test_parity_errors.py``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial

import pytest

from tests.support.deviations import unexplained
from tests.support.parity import Comparison, Parity, Table, attempt, comparisons, each
from tests.support.syscalls import (
    AT_SYMLINK_FOLLOW,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    link_descriptor,
    linkat,
    renameat2,
)
from tests.support.things import (
    ALICE,
    BOB,
    EVERYBODY,
    KINDS,
    ROOT,
    bound_socket,
    file,
    folder,
    hardlink,
    symlink,
    thing,
)

table = Table()
add = table.add

FILES = tuple(kind for kind in KINDS if kind != "dir")


def make(kind: str, path: str, mode: int = 0o666) -> None:
    """Make an object of a kind, with the mode given to the call."""
    match kind:
        case "file":
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        case "dir":
            os.mkdir(path, mode)
        case "symlink":
            os.symlink("some/text", path)
        case "fifo":
            os.mkfifo(path, mode)
        case "socket":
            os.mknod(path, stat.S_IFSOCK | mode)
        case "char":
            os.mknod(path, stat.S_IFCHR | mode, os.makedev(1, 5))
        case "block":
            os.mknod(path, stat.S_IFBLK | mode, os.makedev(7, 1000))
        case "regular node":
            os.mknod(path, stat.S_IFREG | mode)
        case "bound":
            bound_socket(path)


MAKERS = (*KINDS, "regular node", "bound")


def masked(mask: int, kind: str, path: str, mode: int) -> None:
    os.umask(mask)
    make(kind, path, mode)


def made_anew(remove: Callable[[str], None], kind: str) -> None:
    """Remove ``d/new`` and make another of that name, which cannot get the inode of the old one."""
    fd = os.open("d/new", os.O_PATH)
    try:
        remove("d/new")
        make(kind, "d/new")
    finally:
        os.close(fd)


# Making

for kind in MAKERS:
    add(f"make {kind}", {"d": folder(0o777)}, partial(make, kind, "d/new"), *EVERYBODY)
    for mode in (0o0, 0o1777, 0o7777):
        add(
            f"make {kind} {mode:o}",
            {"d": folder(0o777)},
            partial(masked, 0, kind, "d/new", mode),
            ROOT if mode == 0o7777 else ALICE,
        )
    for mask in (0o77, 0o777):
        add(
            f"make {kind} umask {mask:o}",
            {"d": folder(0o777)},
            partial(masked, mask, kind, "d/new", 0o777),
            ALICE,
        )
    for group in (2001, 50):
        add(
            f"make {kind} in setgid {group}",
            {"d": folder(0o2777, BOB, gid=group)},
            partial(masked, 0, kind, "d/new", 0o2775),
            ALICE,
        )
    add(
        f"make {kind} where something was removed",
        {"d": folder(0o777), "d/new": file(0o640, BOB)},
        partial(made_anew, os.unlink, kind),
        ALICE,
    )
    add(
        f"make {kind} where a directory was removed",
        {"d": folder(0o777), "d/new": folder(0o700, ALICE)},
        partial(made_anew, os.rmdir, kind),
    )
    add(
        f"make {kind} over everything",
        {existing: thing(existing) for existing in KINDS},
        partial(each, *(partial(make, kind, existing) for existing in KINDS)),
    )
    add(
        f"make {kind} in a closed directory, and in a group's",
        {"d": folder(0o755), "e": folder(0o775, gid=2001)},
        partial(each, partial(make, kind, "d/new"), partial(make, kind, "e/new")),
        ALICE,
    )

# Links

for kind in KINDS:
    add(
        f"link {kind}",
        {"d": folder(0o777), "d/x": thing(kind, owner=ALICE), "e": folder(0o777)},
        partial(os.link, "d/x", "e/new", follow_symlinks=False),
        *EVERYBODY,
    )
    add(
        f"link {kind} in its directory",
        {"x": thing(kind)},
        partial(os.link, "x", "new", follow_symlinks=False),
    )
    add(
        f"link {kind} over everything",
        {"x": thing(kind), **{existing: thing(existing) for existing in KINDS}},
        lambda: [attempt(partial(linkat, "x", existing)) for existing in KINDS],
    )
add(
    "link a linked file",
    {"a": file(), "b": hardlink("a"), "d": folder(), "d/c": hardlink("a")},
    partial(os.link, "b", "d/new"),
)
add(
    "link and unlink",
    {"a": file(), "d": folder()},
    partial(each, lambda: os.link("a", "d/b"), lambda: os.unlink("a")),
)
add(
    "link a symlink followed",
    {"f": file(), "l": symlink("f")},
    lambda: linkat("l", "n", AT_SYMLINK_FOLLOW),
)
add(
    "link a dangling symlink followed",
    {"l": symlink("no")},
    lambda: linkat("l", "n", AT_SYMLINK_FOLLOW),
)
add("link to a dangling symlink", {"f": file(), "l": symlink("no")}, lambda: linkat("f", "l"))
add("link onto itself", {"f": file()}, lambda: linkat("f", "f"))
add("link with bad flags", {"f": file()}, lambda: linkat("f", "g", 1))
add("link a foreign file (protected)", {"f": file(0o600)}, lambda: linkat("f", "g"), ALICE)
add("link a setuid file (protected)", {"f": file(0o4755)}, lambda: linkat("f", "g"), ALICE)


def linked_descriptor(flags: int, unlinked: bool) -> object:
    fd = os.open("f", flags)
    try:
        if unlinked:
            os.unlink("f")
        return attempt(lambda: link_descriptor(fd, "g")), os.fstat(fd).st_nlink
    finally:
        os.close(fd)


for unlinked in (False, True):
    for name, flags in (("reading", os.O_RDONLY), ("writing", os.O_RDWR), ("path", os.O_PATH)):
        add(
            f"link a descriptor ({name}{', unlinked' if unlinked else ''})",
            {"f": file()},
            partial(linked_descriptor, flags, unlinked),
        )

# Removing

for kind in KINDS:
    remove: Callable[[str], None] = os.rmdir if kind == "dir" else os.unlink
    add(
        f"remove {kind}",
        {"d": folder(0o777), "d/x": thing(kind)},
        partial(remove, "d/x"),
        *EVERYBODY,
    )
    add(f"unlink {kind}", {"x": thing(kind)}, partial(os.unlink, "x"), ROOT, ALICE)
    add(f"rmdir {kind}", {"x": thing(kind)}, partial(os.rmdir, "x"), ROOT, ALICE)
    add(
        f"remove and look {kind}",
        {"x": thing(kind)},
        partial(each, partial(remove, "x"), lambda: os.lstat("x").st_mode, lambda: os.listdir(".")),
    )
for kind in FILES:
    add(
        f"unlink one of two names of {kind}",
        {"d": folder(), "d/x": thing(kind), "e": folder(), "e/y": hardlink("d/x")},
        partial(os.unlink, "e/y"),
    )


def unlink_open(name: str) -> object:
    fd = os.open(name, os.O_RDWR)
    try:
        before = os.fstat(fd)
        os.unlink(name)
        after = os.fstat(fd)
        os.write(fd, b"new")
        return after.st_nlink, before.st_ctime_ns != after.st_ctime_ns, os.fstat(fd).st_size
    finally:
        os.close(fd)


add("unlink an open file", {"x": file()}, partial(unlink_open, "x"))
add(
    "unlink an open file with another name",
    {"x": file(), "y": hardlink("x")},
    partial(unlink_open, "x"),
)
add("rmdir full", {"d": folder(), "d/x": file()}, partial(os.rmdir, "d"))
add("rmdir full of a link", {"d": folder(), "d/x": symlink("no")}, partial(os.rmdir, "d"))
EMPTYING: tuple[tuple[Callable[[str], None], str], ...] = (
    (os.unlink, "d/x"),
    (os.rmdir, "d/e"),
    (os.rmdir, "d"),
)
add(
    "rmdir emptied",
    {"d": folder(), "d/x": file(), "d/e": folder()},
    partial(each, *(partial(call, name) for call, name in EMPTYING)),
)
for name in (".", "..", "d/.", "d/..", "d/", "d//", "./d", "l", "l/", "f/", "f/.", "no/", "no/."):
    for call in (os.rmdir, os.unlink):
        if name != ".." or call is os.unlink:
            add(
                f"{call.__name__} {name}",
                {"d": folder(), "f": file(), "l": symlink("d")},
                partial(call, name),
            )
for name in (".", "..", "d/.", "d/..", "new/", "new//", "new/.", "l/", "l/new/", "f/", "no/new"):
    add(
        f"mkdir {name}",
        {"d": folder(), "f": file(), "l": symlink("d")},
        partial(os.mkdir, name),
    )
    add(
        f"make a file {name}",
        {"d": folder(), "f": file(), "l": symlink("d")},
        partial(make, "file", name),
    )
    add(
        f"symlink {name}",
        {"d": folder(), "f": file(), "l": symlink("d")},
        partial(os.symlink, "x", name),
    )

# Renaming

for kind in KINDS:
    add(
        f"rename {kind}",
        {"d": folder(0o777), "d/x": thing(kind, owner=ALICE), "e": folder(0o777)},
        partial(os.rename, "d/x", "e/y"),
        *EVERYBODY,
    )
    add(f"rename {kind} in its directory", {"x": thing(kind)}, partial(os.rename, "x", "y"))
    add(f"rename {kind} onto itself", {"x": thing(kind)}, partial(os.rename, "x", "x"))
    add(
        f"rename {kind} there and back",
        {"d": folder(), "x": thing(kind)},
        partial(each, partial(os.rename, "x", "d/y"), partial(os.rename, "d/y", "x")),
    )
    add(
        f"rename {kind} over everything, without replacing",
        {"x": thing(kind), **{existing: thing(existing) for existing in KINDS}},
        lambda: [attempt(partial(renameat2, "x", name, RENAME_NOREPLACE)) for name in KINDS],
    )
    for existing in KINDS if kind in ("file", "dir") else ("file", "dir", kind):
        add(
            f"rename {kind} over {existing}",
            {"d": folder(), "d/x": thing(kind), "e": folder(), "e/y": thing(existing)},
            partial(os.rename, "d/x", "e/y"),
        )
        for flag, name in ((RENAME_EXCHANGE, "exchanging"),):
            add(
                f"rename {name} {kind} over {existing}",
                {"d": folder(), "d/x": thing(kind), "e": folder(), "e/y": thing(existing)},
                partial(renameat2, "d/x", "e/y", flag),
            )
    for flag, name in ((RENAME_NOREPLACE, "without replacing"), (RENAME_EXCHANGE, "exchanging")):
        add(
            f"rename {name} {kind}",
            {"d": folder(), "d/x": thing(kind), "e": folder()},
            partial(renameat2, "d/x", "e/y", flag),
        )
for kind in FILES:
    add(
        f"rename {kind} over its other name",
        {"d": folder(), "d/x": thing(kind), "e": folder(), "e/y": hardlink("d/x")},
        partial(os.rename, "d/x", "e/y"),
    )
    add(
        f"rename over one of two names of {kind}",
        {"x": file(), "y": thing(kind), "z": hardlink("y")},
        partial(os.rename, "x", "y"),
    )
    add(
        f"rename one of two names of {kind}",
        {"d": folder(), "x": thing(kind), "z": hardlink("x")},
        partial(os.rename, "x", "d/y"),
    )
for source in ("f/", "d", "d/", "d/.", "d/..", "..", "l/", "no/", "dl", "dl/"):
    for target in ("n/", "f/", "e/", "e/.", ".", "dl/", "no/n"):
        add(
            f"rename {source} to {target}",
            {
                "f": file(),
                "d": folder(),
                "e": folder(),
                "l": symlink("f"),
                "dl": symlink("d"),
            },
            partial(os.rename, source, target),
        )
TREE = {
    "d": folder(),
    "d/e": folder(),
    "d/e/g": folder(),
    "d/f": file(),
    "full": folder(),
    "full/x": file(),
}
for source, target in (
    ("d", "d/x"),
    ("d", "d/e"),
    ("d", "d/e/x"),
    ("d", "d/e/g"),
    ("d/e", "d"),
    ("d/e/g", "d"),
    ("d/e/g", "full"),
    ("d/e/g", "full/x"),
    ("d/e/g", "new"),
    ("d/f", "d"),
    ("d/f", "d/e/f"),
    ("full", "d/e/g"),
    ("full", "new"),
    ("full/x", "d/f"),
):
    add(f"rename in a tree, {source} to {target}", TREE, partial(os.rename, source, target))
    for flag, name in ((RENAME_NOREPLACE, "without replacing"), (RENAME_EXCHANGE, "exchanging")):
        add(
            f"rename in a tree, {name}, {source} to {target}",
            TREE,
            partial(renameat2, source, target, flag),
        )
for flags in (3, 4, 6, 8):
    add(
        f"rename with flags {flags:x}",
        {"f": file(), "g": file()},
        partial(renameat2, "f", "g", flags),
    )
for mode, owner in ((0o755, ROOT), (0o755, ALICE), (0o555, ALICE), (0o777, ROOT)):
    # A directory that gets another parent changes itself: its ".." does.
    add(
        f"move a directory {mode:o} of {owner.name}",
        {"d": folder(0o777), "d/x": folder(mode, owner), "e": folder(0o777)},
        partial(os.rename, "d/x", "e/x"),
        *EVERYBODY,
    )
    add(
        f"rename a directory {mode:o} of {owner.name}",
        {"d": folder(0o777), "d/x": folder(mode, owner)},
        partial(os.rename, "d/x", "d/y"),
        *EVERYBODY,
    )

# The sticky bit: who may remove what from whom

for directory_owner in EVERYBODY:
    for owner in EVERYBODY:
        about = f"{owner.name}'s in a sticky directory of {directory_owner.name}"
        things = {
            "d": folder(0o1777, directory_owner),
            "d/f": file(0o666, owner),
            "d/e": folder(0o777, owner),
            "d/l": thing("symlink", owner=owner),
            "n": folder(0o777),
        }

        def sticky() -> object:
            return [
                attempt(lambda: renameat2("d/f", "n/f", RENAME_NOREPLACE)),
                attempt(lambda: renameat2("d/f", "d/g", RENAME_NOREPLACE)),
                attempt(lambda: os.rmdir("d/e")),
                attempt(lambda: os.unlink("d/f")),
                attempt(lambda: os.unlink("d/g")),
                attempt(lambda: os.unlink("d/l")),
            ]

        add(f"remove {about}", things, sticky, *EVERYBODY)
        add(
            f"replace {about}",
            {**things, "n/mine": file(0o666, ALICE), "n/dir": folder(0o777, ALICE)},
            lambda: [
                attempt(lambda: os.rename("n/mine", "d/f")),
                attempt(lambda: os.rename("n/dir", "d/e")),
                attempt(lambda: renameat2("n/mine", "d/l", RENAME_EXCHANGE)),
                attempt(lambda: linkat("d/f", "d/new")),
            ],
            ALICE,
            BOB,
        )


COMPARISONS = comparisons(table.cases)


@pytest.mark.parametrize("one", COMPARISONS, ids=str)
def test_parity(unions: Callable[[str], Parity], one: Comparison) -> None:
    different = unexplained(one, *unions(one.profile).compare(one))
    assert not different, "\n" + "\n".join(different)
