"""Copying content: holes, zeros, lengths, cancelling (``unionfs/union/data.py``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.effort import examples
from unionfs import syscalls
from unionfs.union import data
from unionfs.union.data import CancelledError, copy_content

KIB = 1 << 10
MIB = 1 << 20


class Pair:
    """A source and an empty target on a real filesystem."""

    def __init__(self, base: Path) -> None:
        self.source = os.open(base / "source", os.O_CREAT | os.O_RDWR)
        self.target = os.open(base / "target", os.O_CREAT | os.O_RDWR)

    def put(self, offset: int, content: bytes) -> None:
        os.pwrite(self.source, content, offset)

    def read(self) -> bytes:
        return os.pread(self.target, os.fstat(self.target).st_size + 1, 0)

    def whole(self) -> bytes:
        return os.pread(self.source, os.fstat(self.source).st_size + 1, 0)

    def allocated(self) -> int:
        return os.fstat(self.target).st_blocks * 512

    def close(self) -> None:
        os.close(self.source)
        os.close(self.target)


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    made = Pair(tmp_path)
    yield made
    made.close()


@pytest.fixture
def no_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The filesystem cannot share blocks."""

    def refuse(*_: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(syscalls, "ficlone", refuse)


pytestmark = pytest.mark.usefixtures("no_sharing")


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 100_000])
def test_a_copy_is_equal(pair: Pair, size: int) -> None:
    content = os.urandom(size)
    pair.put(0, content)
    copy_content(pair.source, pair.target, size)
    assert pair.read() == content


def test_holes_stay_holes(pair: Pair) -> None:
    pair.put(5 * MIB, b"in the middle")
    os.ftruncate(pair.source, 64 * MIB)
    copy_content(pair.source, pair.target, 64 * MIB)
    assert os.fstat(pair.target).st_size == 64 * MIB
    assert os.pread(pair.target, 13, 5 * MIB) == b"in the middle"
    assert pair.allocated() <= 64 * KIB


def test_written_zeros_become_holes(pair: Pair) -> None:
    pair.put(0, bytes(2 * MIB) + b"end" + bytes(100))
    copy_content(pair.source, pair.target, 2 * MIB + 103)
    assert pair.read() == pair.whole()
    assert pair.allocated() <= 64 * KIB


def test_a_file_of_zeros_only(pair: Pair) -> None:
    pair.put(0, bytes(10_000))
    copy_content(pair.source, pair.target, 10_000)
    assert pair.read() == bytes(10_000)
    assert pair.allocated() == 0


@pytest.mark.parametrize("size", [0, 1, 4096, 5000, 99_999])
def test_only_what_is_kept_is_copied(
    pair: Pair, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = os.urandom(100_000)
    pair.put(0, content)
    read = 0
    real = os.pread

    def counting(fd: int, length: int, offset: int) -> bytes:
        nonlocal read
        read += length
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", counting)
    copy_content(pair.source, pair.target, size)
    monkeypatch.undo()
    assert pair.read() == content[:size]
    assert read == size


def test_a_source_that_is_shorter_leaves_a_hole(pair: Pair) -> None:
    pair.put(0, b"short")
    copy_content(pair.source, pair.target, 10_000)
    assert pair.read() == b"short" + bytes(9_995)


def test_a_source_that_shrinks_meanwhile_leaves_a_hole(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "_CHUNK", 4096)
    pair.put(0, b"x" * 16_384)
    asked = 0

    def shrink() -> bool:
        nonlocal asked
        asked += 1
        if asked == 2:
            os.ftruncate(pair.source, 4096)
        return False

    copy_content(pair.source, pair.target, 16_384, shrink)
    assert pair.read() == b"x" * 4096 + bytes(12_288)


def test_cancelling_ends_the_copy(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_CHUNK", 4096)
    pair.put(0, b"x" * 40_960)
    answers = iter([False, False, True])
    with pytest.raises(CancelledError):
        copy_content(pair.source, pair.target, 40_960, lambda: next(answers))
    assert os.fstat(pair.target).st_size == 8192


def test_a_filesystem_that_does_not_know_holes(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", refuse)
    pair.put(MIB, b"data")
    copy_content(pair.source, pair.target, MIB + 4)
    assert pair.read() == bytes(MIB) + b"data"
    assert pair.allocated() <= 64 * KIB


def test_a_write_that_is_cut_short_goes_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    content = os.urandom(10_000)
    pair.put(0, content)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, view, offset: real(fd, bytes(view)[:777], offset))
    copy_content(pair.source, pair.target, 10_000)
    monkeypatch.undo()
    assert pair.read() == content


def test_blocks_are_shared_where_that_is_possible(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = []
    monkeypatch.setattr(syscalls, "ficlone", lambda target, source: shared.append((target, source)))
    pair.put(0, b"x" * 10)
    copy_content(pair.source, pair.target, 10)
    assert shared == [(pair.target, pair.source)]
    copy_content(pair.source, pair.target, 5)
    assert len(shared) == 1, "a part of a file is copied"


def test_an_error_that_is_not_about_sharing_is_told(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(syscalls, "ficlone", full)
    pair.put(0, b"x" * 10)
    with pytest.raises(OSError, match="No space left"):
        copy_content(pair.source, pair.target, 10)


pieces = st.lists(
    st.tuples(st.integers(0, 60_000), st.binary(min_size=1, max_size=9), st.integers(1, 900)),
    max_size=5,
)


@examples(60)
@given(pieces=pieces, size=st.integers(0, 70_000), cut=st.integers(0, 70_000))
def test_whatever_is_in_a_file_its_copy_is_equal(
    tmp_path_factory: pytest.TempPathFactory,
    pieces: list[tuple[int, bytes, int]],
    size: int,
    cut: int,
) -> None:
    base = tmp_path_factory.mktemp("copy")
    pair = Pair(base)
    try:
        for offset, content, times in pieces:
            pair.put(offset, content * times)
        os.ftruncate(pair.source, size)
        copy_content(pair.source, pair.target, cut)
        assert pair.read() == pair.whole()[:cut].ljust(cut, b"\0")
    finally:
        pair.close()
