"""Names: opening with every flag, hard links, renaming, names of any bytes.

Each scenario is run in a plain directory too (``tests/support/oracle.py``).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from pathlib import Path

from tests.support.calls import RENAME_NOREPLACE, RENAME_WHITEOUT, renameat2
from tests.support.mounting import Union
from tests.support.oracle import Oracle, attributes, symbol_of
from tests.support.trees import fails, fill


def build(place: Path) -> None:
    for name in ("f", "g", "h", "d/in"):
        path = place / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(name)
    (place / "empty").mkdir()
    (place / "link").symlink_to("f")
    (place / "dangling").symlink_to("nowhere")
    (place / "loop").symlink_to("loop")
    (place / "dirlink").symlink_to("d")


# Opening


def test_open_flags(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        create = os.O_CREAT | os.O_WRONLY
        return {
            "creat exclusively, exists": symbol_of(os.open, top / "f", create | os.O_EXCL),
            "creat exclusively, dangling": symbol_of(os.open, top / "dangling", create | os.O_EXCL),
            "creat exclusively": symbol_of(os.open, top / "new", create | os.O_EXCL),
            "creat through a link": symbol_of(os.open, top / "dangling", create),
            "made": (top / "nowhere").exists(),
            "creat a directory": symbol_of(os.open, top / "d", create),
            "write a directory": symbol_of(os.open, top / "d", os.O_WRONLY),
            "directory wanted": symbol_of(os.open, top / "f", os.O_DIRECTORY),
            "no link wanted": symbol_of(os.open, top / "link", os.O_NOFOLLOW),
            "loop": symbol_of(os.open, top / "loop", os.O_RDONLY),
            "absent": symbol_of(os.open, top / "absent", os.O_RDWR),
            "below a file": symbol_of(os.open, top / "f/x", os.O_RDWR),
            "slash behind a file": symbol_of(os.open, f"{top}/f/", os.O_RDONLY),
            "absent parent": symbol_of(os.open, top / "no/x", create),
            "path": symbol_of(os.open, top / "f", os.O_PATH),
            "synchronous": symbol_of(os.open, top / "f", os.O_RDWR | os.O_SYNC),
            "truncate, reading": symbol_of(os.open, top / "h", os.O_RDWR | os.O_TRUNC),
            "truncated": (top / "h").stat().st_size,
        }

    oracle.same(scenario)


def test_append_always_goes_to_the_end(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        one = os.open(top / "f", os.O_WRONLY | os.O_APPEND)
        two = os.open(top / "f", os.O_WRONLY | os.O_APPEND)
        other = os.open(top / "f", os.O_RDWR)
        try:
            for number in range(3):
                os.write(one, b"1")
                os.write(two, b"2")
                os.pwrite(other, b"%d" % number, number)
            os.lseek(one, 0, os.SEEK_SET)
            os.write(one, b"end")
            return (top / "f").read_text(), os.pread(other, 100, 0), os.fstat(two).st_size
        finally:
            os.close(one)
            os.close(two)
            os.close(other)

    oracle.same(scenario)


def test_writing_far_beyond_the_end_leaves_a_hole(oracle: Oracle) -> None:
    oracle.start(build)

    def scenario(top: Path) -> object:
        fd = os.open(top / "f", os.O_RDWR)
        try:
            os.pwrite(fd, b"x", 100_000)
            os.ftruncate(fd, 200_000)
            status = os.fstat(fd)
            return (
                os.pread(fd, 5, 0),
                os.pread(fd, 3, 99_999),
                os.pread(fd, 10, 199_995),
                os.pread(fd, 10, 200_000),
                os.pread(fd, 10, 10**12),
                os.pwrite(fd, b"", 10),
                status.st_size,
                symbol_of(os.ftruncate, fd, -1),
                symbol_of(os.truncate, top / "d", 1),
                symbol_of(os.truncate, top / "absent", 1),
            )
        finally:
            os.close(fd)

    oracle.same(scenario)


def test_direct_io(union: Union) -> None:
    """O_DIRECT is for the kernel; passed on to the branch it would be EINVAL here."""
    fill(union.R, "f")
    top = union.start()
    fd = os.open(top / "f", os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pread(fd, 100, 0) == b"R"
        with mmap.mmap(-1, 4096) as page:
            page[:] = b"p" * 4096
            assert os.pwrite(fd, page, 0) == 4096
            assert os.pwrite(fd, b"odd", 4096 + 7) == 3
        assert os.pread(fd, 3, 4096 + 7) == b"odd"
    finally:
        os.close(fd)
    assert (top / "f").read_bytes() == b"p" * 4096 + b"\0" * 7 + b"odd"


# Hard links


def test_links(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        seen: list[object] = []
        os.link(top / "f", top / "f2")
        os.link(top / "f2", top / "d/f3")
        seen.append([attributes(os.stat(top / name)) for name in ("f", "f2", "d/f3")])
        seen.append(len({os.stat(top / name).st_ino for name in ("f", "f2", "d/f3")}))
        (top / "f").write_text("by f")
        seen.append([(top / name).read_text() for name in ("f", "f2", "d/f3")])
        os.chmod(top / "d/f3", 0o604)
        seen.append([attributes(os.stat(top / name)) for name in ("f", "f2", "d/f3")])
        os.unlink(top / "f")
        os.rename(top / "f2", top / "f4")
        seen.append([attributes(os.stat(top / name)) for name in ("f4", "d/f3")])
        # Two names of one file: rename does nothing, successfully.
        os.rename(top / "f4", top / "d/f3")
        seen.append(((top / "f4").exists(), (top / "d/f3").exists()))
        os.link(top / "link", top / "link2", follow_symlinks=False)
        seen.append((os.readlink(top / "link2"), os.lstat(top / "link2").st_nlink))
        seen.extend(
            (
                symbol_of(os.link, top / "g", top / "h"),
                symbol_of(os.link, top / "d", top / "d2"),
                symbol_of(os.link, top / "absent", top / "x"),
                symbol_of(os.link, top / "g", top / "no/x"),
            )
        )
        return seen

    oracle.same(scenario)


def test_links_over_copy_up_and_a_new_mount(oracle: Oracle, udba: str) -> None:
    def build_links(place: Path) -> None:
        for number in range(3):
            (place / f"d{number}").mkdir()
        (place / "d0/a").write_text("text")
        for name in ("d0/b", "d1/c", "d2/d"):
            os.link(place / "d0/a", place / name)

    oracle.start(build_links, options=udba)
    names = ("d0/a", "d0/b", "d1/c", "d2/d", "d1/e")

    def look(top: Path) -> object:
        there = [name for name in names if (top / name).exists()]
        return (
            [(name, attributes(os.stat(top / name))) for name in there],
            [(top / name).read_text() for name in there],
            len({os.stat(top / name).st_ino for name in there}),
        )

    def change(action: Callable[[Path], object]) -> None:
        def scenario(top: Path) -> object:
            action(top)
            return look(top)

        oracle.same(scenario)
        oracle.union.remount()
        oracle.same(look)

    change(lambda top: os.chmod(top / "d1/c", 0o600))
    change(lambda top: (top / "d2/d").write_text("changed"))
    change(lambda top: os.link(top / "d0/b", top / "d1/e"))
    change(lambda top: os.unlink(top / "d1/c"))
    change(lambda top: os.rename(top / "d0/a", top / "d1/c"))
    change(lambda top: (top / "d1/e").write_text("by the new one"))
    change(lambda top: os.unlink(top / "d0/b"))


# Rename


def test_rename(oracle: Oracle, udba: str) -> None:
    oracle.start(build, options=udba)

    def scenario(top: Path) -> object:
        seen: list[object] = [
            symbol_of(os.rename, top / "absent", top / "x"),
            symbol_of(os.rename, top / "f", top / "d"),
            symbol_of(os.rename, top / "empty", top / "f"),
            symbol_of(os.rename, top / "empty", top / "d"),
            symbol_of(os.rename, top / "empty", top / "empty/in"),
            symbol_of(os.rename, top / "f", top / "f/x"),
            symbol_of(os.rename, top / "f", top / "f"),
            symbol_of(os.rename, top / "f", top / "no/x"),
        ]
        number = os.stat(top / "f").st_ino
        fd = os.open(top / "f", os.O_RDWR)
        os.rename(top / "f", top / "g")
        os.write(fd, b"new")
        os.close(fd)
        seen.append(((top / "g").read_text(), os.stat(top / "g").st_ino == number))
        os.rename(top / "g", top / "empty/g")
        os.rename(top / "link", top / "empty/link")
        os.rename(top / "dangling", top / "link")
        seen.append((os.readlink(top / "link"), os.readlink(top / "empty/link")))
        seen.append(sorted(os.listdir(top)))
        seen.append(sorted(os.listdir(top / "empty")))
        os.rename(top / "empty/g", top / "f")
        seen.append((top / "f").read_text())
        return seen

    oracle.same(scenario)


def test_rename_without_replacing(oracle: Oracle) -> None:
    oracle.start(build)

    def scenario(top: Path) -> object:
        return (
            symbol_of(renameat2, top / "f", top / "g", RENAME_NOREPLACE),
            symbol_of(renameat2, top / "f", top / "d", RENAME_NOREPLACE),
            symbol_of(renameat2, top / "f", top / "new", RENAME_NOREPLACE),
            symbol_of(renameat2, top / "absent", top / "newer", RENAME_NOREPLACE),
            symbol_of(renameat2, top / "new", top / "x", 64),
            (top / "new").read_text(),
            sorted(os.listdir(top)),
        )

    oracle.same(scenario)
    # No whiteout of another form is ever made.
    with fails("EINVAL"):
        renameat2(oracle.union.mount / "upper/g", oracle.union.mount / "upper/x", RENAME_WHITEOUT)


def test_directories_of_the_writable_branch_are_renamed(oracle: Oracle, udba: str) -> None:
    def build_tree(place: Path) -> None:
        fill(place, "a/b/c/f", "a/x", "other/", "full/y")

    oracle.start(build_tree, options=udba)

    def scenario(top: Path) -> object:
        fd = os.open(top / "a/b/c/f", os.O_RDWR)
        inside = os.open(top / "a/b", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.rename(top / "a", top / "moved")
            os.rename(top / "moved/b", top / "other/b")
            os.write(fd, b"+")
            os.mkdir("new", dir_fd=inside)
            return (
                (top / "other/b/c/f").read_text()[0],
                sorted(os.listdir(top / "other/b")),
                sorted(os.listdir(top / "moved")),
                symbol_of(os.rename, top / "moved", top / "full"),
                symbol_of(os.rename, top / "other", top / "other/b/c/x"),
                symbol_of(os.stat, "../x", dir_fd=inside),
                symbol_of(os.stat, "../b", dir_fd=inside),
            )
        finally:
            os.close(fd)
            os.close(inside)

    oracle.same(scenario, places=("upper",))


# Strange names


def test_names_of_any_bytes(oracle: Oracle) -> None:
    names = [
        b"new\nline",
        b"\xff\xfe",
        b" ",
        b"-rf",
        "ünïcödé".encode(),
        b"wh.x",
        b".wh",
        b"x.wh.y",
        b"...",
        b"\x01",
        b"%s%n",
        b"a:b,c=d\\e",
    ]

    def build_names(place: Path) -> None:
        for name in names:
            with open(os.path.join(os.fsencode(place), name), "wb") as file:
                file.write(name)

    oracle.start(build_names)

    def scenario(top: Path) -> object:
        place = os.fsencode(top)
        seen = []
        for name in names:
            path = os.path.join(place, name)
            with open(path, "ab") as file:
                file.write(b"+")
            os.rename(path, path + b"2")
            with open(path + b"2", "rb") as file:
                seen.append(file.read())
        os.unlink(os.path.join(place, names[1] + b"2"))
        return seen, sorted(os.listdir(place))

    oracle.same(scenario)
