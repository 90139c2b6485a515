"""Random changes, in a union and in a plain directory: every answer and every tree is the same.

What single scenarios do not reach is how operations follow upon each other, through the caches of
the kernel. The seeds are fixed, so a failure comes again; its message tells the seed and the steps.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.effort import EFFORT
from tests.support.mounting import Union
from tests.support.oracle import symbol_of
from tests.support.trees import describe, fill, paths

NAMES = ("a", "b", "c", "s", "d", "e")


def build(place: Path) -> None:
    fill(place, "a", "d/a", "d/b", "d/s/a", "d/s/b", "e/c", "e/s/")
    os.link(place / "d/a", place / "e/a")
    os.link(place / "d/b", place / "c")
    (place / "b").symlink_to("d/a")
    for name in ("a", "d/a", "d/b", "d/s/a", "d/s/b", "e/c"):
        (place / name).write_text(name)


class Walk:
    """A random sequence of operations; each is done in the union first, then in the directory."""

    def __init__(self, union: Union, plain: Path, seed: int) -> None:
        self.union = union
        self.plain = plain
        self.random = random.Random(seed)
        self.steps: list[str] = []
        self.open: list[tuple[int, int]] = []

    def path(self, existing: float) -> str:
        """Choose a path: with this probability one that exists, else any in what exists."""
        there = sorted(paths(self.plain))
        if there and self.random.random() < existing:
            return self.random.choice(there)
        directories = ["", *(path for path in there if (self.plain / path).is_dir())]
        shallow = [path for path in directories if path.count("/") < 3]
        return os.path.join(self.random.choice(shallow), self.random.choice(NAMES))

    def step(self) -> None:
        """Do one operation in both places and compare what comes of it."""
        choose = self.random
        path, other, number = self.path(0.8), self.path(0.3), choose.randrange(1000)
        third = self.path(0.8)
        operations: dict[str, Callable[[Path], object]] = {
            "write": lambda top: (top / path).write_text(str(number)),
            "write other": lambda top: (top / other).write_text(str(number)),
            "append": lambda top: _append(top / path, b"%d" % number),
            "truncate": lambda top: os.truncate(top / path, number % 7),
            "creat": lambda top: os.close(os.open(top / other, os.O_CREAT | os.O_EXCL, 0o600)),
            "mkdir": lambda top: os.mkdir(top / other),
            "mkdir again": lambda top: os.mkdir(top / other),
            "unlink": lambda top: os.unlink(top / path),
            "rmdir": lambda top: os.rmdir(top / path),
            "rename": lambda top: os.rename(top / path, top / other),
            "rename again": lambda top: os.rename(top / path, top / other),
            "rename over": lambda top: os.rename(top / path, top / third),
            "link": lambda top: os.link(top / path, top / other, follow_symlinks=False),
            "symlink": lambda top: os.symlink(third, top / other),
            "chmod": lambda top: os.chmod(top / path, 0o400 | number % 0o100),
            "chown": lambda top: os.chown(top / path, number, -1, follow_symlinks=False),
            "setxattr": lambda top: os.setxattr(top / path, "user.k", b"%d" % number),
            "utime": lambda top: os.utime(top / path, ns=(number, number)),
            "clear": lambda top: shutil.rmtree(top / path),
            "list": lambda top: sorted(os.listdir(top / path)),
            "read": lambda top: (top / path).read_bytes(),
            "stat": lambda top: _looks(os.lstat(top / path)),
        }
        name = choose.choice(sorted(operations))
        if name == "clear" and choose.random() < 0.7:
            return
        if choose.random() < 0.1:
            self.hold(path)
            return
        if self.open and choose.random() < 0.15:
            self.use(choose.randrange(len(self.open)), number)
            return
        self.steps.append(f"{name} {path} {other} {third} {number}")
        seen = _answer(operations[name], self.union.mount)
        if seen == "EXDEV":
            # A directory with lower children: aufs.md 6.4. A plain directory would rename it.
            assert name.startswith("rename")
            return
        expected = _answer(operations[name], self.plain)
        assert seen == expected, self.report(f"{seen!r}, in a plain directory {expected!r}")

    def hold(self, path: str) -> None:
        """Open a file in both places and keep it open."""
        self.steps.append(f"open {path}")
        both = []
        for top in (self.union.mount, self.plain):
            try:
                both.append(os.open(top / path, os.O_RDWR))
            except OSError as error:
                both.append(-(error.errno or 0))
        if min(both) < 0:
            for fd in both:
                if fd >= 0:
                    os.close(fd)
            assert both[0] == both[1], self.report(f"open: {both}")
            return
        self.open.append((both[0], both[1]))

    def use(self, index: int, number: int) -> None:
        """Write, look at and perhaps close a file that is open, whatever became of its name."""
        self.steps.append(f"use {index} {number}")
        pair = self.open[index]
        seen = []
        for fd in pair:
            os.pwrite(fd, b"%d" % number, number % 11)
            seen.append((_looks(os.fstat(fd)), os.pread(fd, 100, 0)))
        assert seen[0] == seen[1], self.report(f"{seen[0]}, in a plain directory {seen[1]}")
        if number % 2:
            self.open.remove(pair)
            for fd in pair:
                os.close(fd)

    def compare(self) -> None:
        """Compare the two trees."""
        seen, expected = (
            {path: _compared(entry) for path, entry in describe(top).items()}
            for top in (self.union.mount, self.plain)
        )
        assert seen == expected, self.report("the trees differ")

    def close(self) -> None:
        while self.open:
            for fd in self.open.pop():
                os.close(fd)

    def report(self, what: str) -> str:
        return what + "\n" + "\n".join(self.steps)


def _append(path: Path, data: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)


def _looks(status: os.stat_result) -> tuple[int, ...]:
    directory = status.st_mode & 0o170000 == 0o040000
    size = () if directory else (status.st_size, status.st_nlink)
    return (status.st_mode, status.st_uid, *size)


def _compared(entry: object) -> tuple[object, ...]:
    fields = vars(entry)
    left_out = {"mtime_ns"} | ({"nlink"} if fields["kind"] == "directory" else set())
    return tuple(value for key, value in fields.items() if key not in left_out)


def _answer(operation: Callable[[Path], object], top: Path) -> object:
    try:
        return operation(top)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


@pytest.mark.parametrize("seed", range(2 * EFFORT))
def test_random_operations(union: Union, udba: str, seed: int) -> None:
    union.forked = True
    plain = union.base / "plain"
    plain.mkdir()
    build(plain)
    build(union.R)
    union.start(options=f"{udba},volatile")
    walk = Walk(union, plain, seed)
    try:
        for _ in range(3):
            for _ in range(150):
                walk.step()
            walk.compare()
            walk.close()
            union.settle()
            union.remount()
            walk.compare()
    finally:
        walk.close()


@pytest.mark.parametrize("seed", range(EFFORT))
def test_random_content(union: Union, udba: str, seed: int) -> None:
    """Reads, writes, truncations, mappings and new mounts; the model is an array of bytes."""
    choose = random.Random(seed)
    model = bytearray(choose.randbytes(50_000))
    (union.R / "f").write_bytes(model)
    os.link(union.R / "f", union.R / "g")
    union.forked = True
    top = union.start(options=f"{udba},volatile")
    fd = os.open(top / "f", os.O_RDWR)
    other = os.open(top / "g", os.O_RDWR)
    steps: list[str] = []
    for number in range(400):
        offset, length = choose.randrange(len(model) + 1), choose.randrange(1, 9000)
        which = choose.choice((fd, other))
        action = choose.choice(("read", "read", "write", "write", "map", "truncate", "append"))
        steps.append(f"{action} {'fg'[which == other]} {offset} {length}")
        if action == "read":
            seen = os.pread(which, length, offset)
            assert seen == model[offset : offset + length], steps
        elif action == "write":
            data = choose.randbytes(length)
            model[offset : offset + length] = data
            os.pwrite(which, data, offset)
        elif action == "append":
            data = choose.randbytes(length)
            model += data
            with (top / "g").open("ab") as file:
                file.write(data)
        elif action == "truncate":
            size = choose.randrange(60_000)
            del model[size:]
            model.extend(bytes(size - len(model)))
            os.ftruncate(which, size)
        elif offset + length <= len(model):
            data = choose.randbytes(length)
            with mmap.mmap(which, 0) as mapping:
                assert mapping[offset : offset + length] == model[offset : offset + length], steps
                mapping[offset : offset + length] = data
            model[offset : offset + length] = data
        if number % 100 == 99:
            os.close(fd)
            os.close(other)
            union.remount()
            assert (top / "f").read_bytes() == model, steps
            fd = os.open(top / "f", os.O_RDWR)
            other = os.open(top / "g", os.O_RDWR)
        assert os.fstat(which).st_size == len(model), steps
    os.close(fd)
    os.close(other)
    assert symbol_of(os.stat, top / "f") == "ok"
