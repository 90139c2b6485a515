"""Layers of several GB, and of very many files: the memory they take does not grow with them.

What is measured is the peak of a whole process, as ``aufs-driver`` is run by an engine. A layer a
thousand times as large may take a few MB more. Names cost memory: which of them a layer has made
itself decides what its whiteouts remove, and a list of changes is a list. Minutes and gigabytes:
part of ``scripts/torture``.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from driver import cli

pytestmark = pytest.mark.torture

MB = 1_000_000
_BLOCK = os.urandom(MB)
_GROWTH = 12 * MB  # bytes that a large layer may take more than a small one
_A_NAME = 300  # bytes that each name may take while a layer is unpacked or written
_A_CHANGE = 700  # bytes of one change in a list of changes


# What wait4(2) says of memory includes that of the parent before exec(3).
_PROGRAM = """
import sys
from driver.cli import main
status = main()
with open("/proc/self/status") as file:
    sys.stderr.writelines(line for line in file if line.startswith("VmHWM"))
sys.exit(status)
"""


class Process:
    """``aufs-driver`` for one store, and the most memory that its last command took, in bytes."""

    def __init__(self, root: str) -> None:
        self.peak = 0
        self._command = [sys.executable, "-P", "-c", _PROGRAM, "--root", root]
        self._environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])}

    def feed(self, pieces: Iterable[bytes], *arguments: str) -> str:
        """Run a command that reads ``pieces``, return what it prints."""
        child = self._start(*arguments)
        assert child.stdin is not None
        assert child.stdout is not None
        for piece in pieces:
            child.stdin.write(piece)
        child.stdin.close()
        text = child.stdout.read()
        self._end(child)
        return text.decode()

    def read(self, use: Callable[[io.BufferedReader], object], *arguments: str) -> None:
        """Run a command and use what it writes."""
        child = self._start(*arguments)
        assert isinstance(child.stdout, io.BufferedReader)
        use(child.stdout)
        assert child.stdout.read() == b""
        self._end(child)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*self._command, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment,
        )

    def _end(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stderr is not None
        said = child.stderr.read().decode()
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        assert child.wait() == 0, said
        found = re.fullmatch(r"VmHWM:\s+(\d+) kB\n", said)
        assert found, said
        self.peak = int(found[1]) * 1024


@pytest.fixture
def process(root: str) -> Process:
    return Process(root)


def header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size = size
    member.mtime = 1_600_000_000
    return member.tobuf(tarfile.PAX_FORMAT)


def large_files(*megabytes: int) -> Iterator[bytes]:
    """Yield a layer of files with that much in them, each block of a file another."""
    for number, count in enumerate(megabytes):
        yield header(f"file{number}", count * MB)
        for block in range(count):
            yield content(number, block)
        yield bytes(-count * MB % 512)
    yield bytes(1024)


def content(number: int, block: int) -> bytes:
    mark = b"%d/%d " % (number, block)
    return mark + _BLOCK[len(mark) :]


def many_files(count: int) -> Iterator[bytes]:
    """Yield a layer of small files, a hundred in each directory."""
    for number in range(count):
        yield header(f"{number // 10_000}/{number // 100}/{number}", 10)
        yield b"0123456789" + bytes(502)
    yield bytes(1024)


@pytest.mark.parametrize("parent", ["", "base"])
def test_files_of_several_gigabytes(process: Process, parent: str) -> None:
    """Both ways of making a diff: from the layer's own branch, and by comparing two roots."""
    sizes = {"small": (1,), "large": (3000, 1, 1500)}
    peaks: dict[str, list[int]] = {layer: [] for layer in sizes}
    process.feed((), "create", "base")
    for layer, megabytes in sizes.items():
        process.feed((), "create", layer)
        done = process.feed(large_files(*megabytes), "apply", layer)
        assert done == f"{sum(megabytes) * MB}\n"
        peaks[layer].append(process.peak)
        process.read(partial(same_files, megabytes), "diff", layer, "--parent", parent)
        peaks[layer].append(process.peak)
    print({layer: [f"{peak / MB:.1f} MB" for peak in one] for layer, one in peaks.items()})
    for small, large in zip(*peaks.values(), strict=True):
        assert large < small + _GROWTH


def same_files(megabytes: tuple[int, ...], stream: io.BufferedReader) -> None:
    """Compare a diff with what `large_files` gave."""
    found = []
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is None:
                continue
            here, there = hashlib.sha1(), hashlib.sha1()
            for block in range(member.size // MB):
                here.update(file.read(MB))
                there.update(content(int(member.name.removeprefix("file")), block))
            assert here.digest() == there.digest()
            found.append(member.size)
    assert found == [size * MB for size in megabytes]


def test_very_many_files(process: Process) -> None:
    few, many = 200, 200_000
    peaks: dict[int, list[int]] = {few: [], many: []}
    for count, found in peaks.items():
        layer = f"of{count}"
        process.feed((), "create", layer)
        assert process.feed(many_files(count), "apply", layer) == f"{count * 10}\n"
        found.append(process.peak)
        process.read(partial(regular_files, count), "diff", layer)
        found.append(process.peak)
        process.read(list, "changes", layer)
        found.append(process.peak)
    print({count: [f"{peak / MB:.1f} MB" for peak in one] for count, one in peaks.items()})
    growth = [two - one for one, two in zip(*peaks.values(), strict=True)]
    assert growth[0] < many * _A_NAME
    assert growth[1] < many * _A_NAME
    assert growth[2] < many * _A_CHANGE


def regular_files(expected: int, stream: io.BufferedReader) -> None:
    found = 0
    with tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            found += member.isreg()
            tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers all of them
    assert found == expected
