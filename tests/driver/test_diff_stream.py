"""What a diff's reader is told after an error, and what a forked child may not give back."""

from __future__ import annotations

import os
from collections.abc import Generator

import pytest

from driver.diff import DiffStream
from driver.errors import ArchiveError


def broken() -> Generator[bytes, None, None]:
    yield b"abc"
    raise ArchiveError("it shrank")


def test_an_error_is_not_followed_by_an_end() -> None:
    with DiffStream(broken()) as stream:
        assert stream.read(2) == b"ab"
        for _ in range(3):
            with pytest.raises(ArchiveError, match="it shrank"):
                stream.read()
        with pytest.raises(ArchiveError, match="it shrank"):
            next(stream)


@pytest.mark.parametrize("how", ["dropped", "closed"])
def test_a_forked_child_does_not_release(how: str) -> None:
    reading, writing = os.pipe()

    def release() -> None:
        os.write(writing, b"x")

    stream = DiffStream(broken(), release)
    child = os.fork()
    if child == 0:
        try:
            if how == "closed":
                stream.close()
            del stream
        finally:
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    os.set_blocking(reading, False)
    with pytest.raises(BlockingIOError):
        os.read(reading, 1)
    stream.close()
    assert os.read(reading, 1) == b"x"
    os.close(reading)
    os.close(writing)
