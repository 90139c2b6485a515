"""Parity of what is done with files: opening, writing, cutting, mapping, holes, reservations.

Which flags and types open gives what; who loses setuid and setgid by writing; which times change.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from tests.support.deviations import unexplained
from tests.support.parity import Comparison, Parity, Table, attempt, comparisons, each
from tests.support.syscalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
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

# Reads until its standard input is closed.
PROGRAM = replace(file(0o777), source="/bin/cat")
READ, WRITE, BOTH = os.O_RDONLY, os.O_WRONLY, os.O_RDWR
CREATE, EXCLUSIVELY, TRUNCATE, APPEND = os.O_CREAT, os.O_EXCL, os.O_TRUNC, os.O_APPEND
DIRECTORY, NOFOLLOW, PATH = os.O_DIRECTORY, os.O_NOFOLLOW, os.O_PATH


def opened(path: str, flags: int, mode: int = 0o666) -> None:
    os.close(os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY, mode))


def using(path: str, flags: int, *calls: Callable[[int], object]) -> object:
    """Open, make calls with the descriptor, and tell what each gave."""
    fd = os.open(path, flags, 0o644)
    try:
        return [attempt(partial(call, fd)) for call in calls]
    finally:
        os.close(fd)


# Opening

FLAGS = {
    "": 0,
    "creat": CREATE,
    "creat excl": CREATE | EXCLUSIVELY,
    "trunc": TRUNCATE,
    "append": APPEND,
    "append trunc": APPEND | TRUNCATE,
    "creat trunc": CREATE | TRUNCATE,
    "directory": DIRECTORY,
    "directory creat": DIRECTORY | CREATE,
    "nofollow": NOFOLLOW,
    "path": PATH,
    "path nofollow": PATH | NOFOLLOW,
    "path directory": PATH | DIRECTORY,
    "noatime": os.O_NOATIME,
    "sync": os.O_SYNC,
    "direct": os.O_DIRECT,
}
OPENED = {
    **{kind: thing(kind, 0o666) for kind in KINDS},
    "link": symlink("dir"),
    "dangling": symlink("by a link"),
    "dirlink": symlink("dir"),
}


def open_all(flags: int) -> object:
    paths = (*OPENED, "new", "file/", "dir/", "dirlink/", "new/", "dangling/")
    return {path: attempt(partial(opened, path, flags)) for path in paths}


for about, flags in FLAGS.items():
    for access, name in ((READ, "read"), (WRITE, "write"), (BOTH, "both")):
        # A device may have data for whoever opens it without wanting to cut it.
        add(f"open {name} {about}", OPENED, partial(open_all, access | flags), ROOT, ALICE)
add("open with all access bits", {"x": file()}, partial(opened, "x", 3), ROOT, ALICE)
for mode in (0o400, 0o200, 0o040, 0o020, 0o004, 0o002, 0o660, 0o077):
    add(
        f"open {mode:o}",
        {"x": file(mode, ALICE, gid=2002)},
        lambda: [attempt(partial(opened, "x", flags)) for flags in (READ, WRITE, BOTH, TRUNCATE)],
        *EVERYBODY,
    )
for mode in (0o000, 0o200, 0o444, 0o7777):
    add(
        f"create with {mode:o} and use",
        {"d": folder(0o777)},
        partial(
            lambda mode: using_new("d/x", mode),
            mode,
        ),
        ROOT,
        ALICE,
    )


def using_new(path: str, mode: int) -> object:
    fd = os.open(path, CREATE | BOTH, mode)
    try:
        return os.write(fd, b"text"), os.pread(fd, 9, 0), attempt(partial(opened, path, BOTH))
    finally:
        os.close(fd)


add("create in an open directory over a link", {"l": symlink("n")}, partial(opened, "l", CREATE))
add(
    "create where a foreign file is (sticky)",
    {"d": folder(0o1777), "d/x": file(0o666)},
    partial(opened, "d/x", CREATE | WRITE),
    ALICE,
)
add(
    "create where a foreign fifo is (sticky)",
    {"d": folder(0o1777), "d/x": thing("fifo", 0o666)},
    partial(opened, "d/x", CREATE | BOTH),
    ALICE,
)
add(
    "unnamed file",
    {"d": folder(0o777)},
    partial(using, "d", os.O_TMPFILE | BOTH, lambda fd: os.fstat(fd).st_nlink),
)


def text_is_busy() -> object:
    """Writing to a program that runs, and running one that is written."""
    reading, writing = os.pipe()
    actions = [(os.POSIX_SPAWN_DUP2, reading, 0), (os.POSIX_SPAWN_CLOSE, writing)]
    child = os.posix_spawn("x", ["x"], {}, file_actions=actions)
    try:
        seen = [
            attempt(partial(opened, "x", WRITE)),
            attempt(partial(opened, "x", BOTH | TRUNCATE)),
            attempt(partial(os.truncate, "x", 1)),
            attempt(partial(os.chmod, "x", 0o755)),
        ]
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)
    fd = os.open("x", WRITE)
    seen.append(attempt(lambda: os.posix_spawn("x", ["x"], {})))
    os.close(fd)
    return seen


add("a program that runs", {"x": PROGRAM}, text_is_busy, ROOT)

# Writing, and what it takes away

WRITES: dict[str, Callable[[str], object]] = {
    "write": lambda path: using(path, WRITE, lambda fd: os.write(fd, b"new")),
    "write nothing": lambda path: using(path, WRITE, lambda fd: os.write(fd, b"")),
    "append": lambda path: using(path, WRITE | APPEND, lambda fd: os.write(fd, b"new")),
    "truncate shorter": lambda path: os.truncate(path, 1),
    "truncate longer": lambda path: os.truncate(path, 9000),
    "truncate to the same": lambda path: os.truncate(path, 4),
    "ftruncate shorter": lambda path: using(path, WRITE, lambda fd: os.ftruncate(fd, 1)),
    "ftruncate longer": lambda path: using(path, WRITE, lambda fd: os.ftruncate(fd, 9000)),
    "ftruncate to the same": lambda path: using(path, WRITE, lambda fd: os.ftruncate(fd, 4)),
    "open to truncate": lambda path: opened(path, WRITE | TRUNCATE),
    "open to write": lambda path: opened(path, WRITE),
    "open to create": lambda path: opened(path, WRITE | CREATE),
    "read": lambda path: using(path, READ, lambda fd: os.read(fd, 9)),
    "read nothing": lambda path: using(path, READ, lambda fd: os.read(fd, 0)),
    "map and write": lambda path: using(path, BOTH, map_and_write),
    "copy_file_range": lambda path: using(
        path, BOTH, lambda fd: os.copy_file_range(fd, fd, 2, 0, 4)
    ),
    "posix_fallocate inside": lambda path: using(
        path, BOTH, lambda fd: os.posix_fallocate(fd, 0, 2)
    ),
    "posix_fallocate beyond": lambda path: using(
        path, BOTH, lambda fd: os.posix_fallocate(fd, 9, 20)
    ),
}


def cut(size: int, fd: int) -> None:
    os.ftruncate(fd, size)


def reserve(offset: int, length: int, fd: int) -> None:
    os.posix_fallocate(fd, offset, length)


def allocate(mode: int, fd: int) -> None:
    fallocate(fd, mode, 0, 8192)


def mapped_for(flags: int, access: int, fd: int) -> None:
    mmap.mmap(fd, 4, flags, access).close()


def seen_both_ways(fd: int) -> object:
    with mmap.mmap(fd, 10) as mapped:
        os.pwrite(fd, b"AB", 2)
        mapped[5:7] = b"CD"
        return mapped[:], os.pread(fd, 10, 0), attempt(partial(os.ftruncate, fd, 20)), mapped[:]


def map_and_write(fd: int) -> None:
    if not os.fstat(fd).st_size:
        return
    with mmap.mmap(fd, 4) as mapped:
        mapped[1:3] = b"ee"
        mapped.flush()


for name, call in WRITES.items():
    for mode in (0o644, 0o6777, 0o2766):
        add(
            f"{name}, {mode:o}",
            {"d": folder(), "d/x": file(mode, ALICE)},
            partial(call, "d/x"),
            *(EVERYBODY if mode == 0o6777 else (ALICE,)),
        )
    add(
        f"{name}, empty",
        {"d": folder(), "d/x": file(0o666, ALICE, text="")},
        partial(call, "d/x"),
        BOB,
    )
    add(f"{name}, linked", {"x": file(), "y": hardlink("x")}, partial(call, "y"))
for size in (-1, 0, 4096, 1 << 30, (1 << 63) - 1):
    add(f"truncate to {size}", {"x": file(0o666)}, partial(os.truncate, "x", size), ROOT, ALICE)
    add(
        f"ftruncate to {size}",
        {"x": file(0o666)},
        partial(using, "x", BOTH, partial(cut, size)),
        ALICE,
    )
for flags, about in (
    (READ, "reading"),
    (PATH, "a path"),
    (WRITE, "writing"),
    (APPEND | BOTH, "both"),
):
    add(
        f"calls with a descriptor for {about}",
        {"x": file(0o666)},
        partial(
            using,
            "x",
            flags,
            lambda fd: os.read(fd, 2),
            lambda fd: os.write(fd, b"abc"),
            lambda fd: os.pwrite(fd, b"z", 1),
            lambda fd: os.pread(fd, 9, 0),
            lambda fd: os.ftruncate(fd, 2),
            lambda fd: os.lseek(fd, 1, os.SEEK_SET),
            lambda fd: os.lseek(fd, -9, os.SEEK_END),
            lambda fd: os.pread(fd, 1, -1),
            os.fsync,
            os.fdatasync,
            os.fchdir,
            lambda fd: os.posix_fallocate(fd, 0, 9),
            lambda fd: fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | APPEND | PATH),
            lambda fd: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
            lambda fd: fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB),
        ),
        ALICE,
    )
for kind in KINDS:
    add(f"truncate {kind}", {"x": thing(kind, 0o666)}, partial(os.truncate, "x", 1), ROOT, ALICE)
add(
    "calls with a directory",
    {"d": folder(0o777), "d/x": file()},
    partial(
        using,
        "d",
        READ,
        lambda fd: os.read(fd, 2),
        lambda fd: os.write(fd, b"abc"),
        lambda fd: os.ftruncate(fd, 2),
        os.fsync,
        lambda fd: os.posix_fallocate(fd, 0, 9),
        lambda fd: sorted(os.listdir(fd)),
    ),
    ALICE,
)
for offset, length in ((0, 0), (-1, 5), (0, -5), (0, 5), (100, 5000), ((1 << 63) - 1, 5)):
    add(
        f"posix_fallocate {offset} {length}",
        {"x": file(0o6777, BOB)},
        partial(using, "x", BOTH, partial(reserve, offset, length)),
        ALICE,
    )
for mode, about in (
    (0, ""),
    (FALLOC_FL_KEEP_SIZE, " keeping the size"),
    (FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, " a hole"),
):
    add(
        f"fallocate{about}",
        {"x": file(0o666)},
        partial(using, "x", BOTH, partial(allocate, mode)),
    )


def holes(fd: int) -> object:
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"x", 1 << 20)
    return [
        attempt(partial(os.lseek, fd, position, whence))
        for position in (0, 1 << 20, 2 << 20)
        for whence in (os.SEEK_DATA, os.SEEK_HOLE)
    ]


add("holes", {"x": file(0o666)}, partial(using, "x", BOTH, holes))
add(
    "a map sees what is written, and the file what is mapped",
    {"x": file(0o666, text="0123456789")},
    partial(using, "x", BOTH, seen_both_ways),
    ALICE,
)


for access, about in ((mmap.PROT_READ, "reading"), (mmap.PROT_READ | mmap.PROT_WRITE, "writing")):
    for flags, name in ((READ, "read"), (BOTH, "both"), (WRITE, "write")):
        for shared in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
            add(
                f"map for {about} {'shared' if shared == mmap.MAP_SHARED else 'privately'}, {name}",
                {"x": file(0o666)},
                partial(
                    using,
                    "x",
                    flags,
                    partial(mapped_for, shared, access),
                ),
                ALICE,
            )
add(
    "statvfs",
    {"d": folder()},
    lambda: [
        (status.f_frsize, status.f_blocks > 0, status.f_files > 0, status.f_flag & os.ST_RDONLY)
        for status in (os.statvfs("."), os.statvfs("d"))
    ],
    ROOT,
    ALICE,
)
add(
    "pathconf",
    {"x": file()},
    partial(
        each,
        *(
            partial(os.pathconf, "x", name)
            for name in ("PC_LINK_MAX", "PC_PATH_MAX", "PC_PIPE_BUF", "PC_NO_TRUNC")
        ),
    ),
)

COMPARISONS = comparisons(table.cases)


@pytest.mark.parametrize("one", COMPARISONS, ids=str)
def test_parity(unions: Callable[[str], Parity], one: Comparison) -> None:
    different = unexplained(one, *unions(one.profile).compare(one))
    assert not different, "\n" + "\n".join(different)
