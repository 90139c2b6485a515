"""A diff as a stream: read in portions, closed early, failed, inherited by a fork."""

from __future__ import annotations

import errno
import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from driver import Driver
from driver.diff import DiffStream
from driver.errors import ArchiveError
from tests.support.servers import kill


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


def chunks(log: list[str]) -> Iterator[bytes]:
    try:
        yield b"abc"
        yield b"defg"
        yield b""
        yield b"h"
    finally:
        log.append("ended")


def test_stream_reads_what_is_asked_for() -> None:
    log: list[str] = []
    stream = DiffStream(chunks(log), lambda: log.append("released"))  # type: ignore[arg-type]
    assert stream.readable()
    assert stream.read(0) == b""
    assert [stream.read(2), stream.read(4), stream.read(9), stream.read(1)] == [
        b"ab",
        b"cdef",
        b"gh",
        b"",
    ]
    assert log == ["ended"]
    stream.close()
    stream.close()
    assert stream.closed
    assert log == ["ended", "released"]
    with pytest.raises(ValueError, match="closed"):
        stream.read()


def test_stream_can_be_iterated_and_read_at_once() -> None:
    with DiffStream(chunks([])) as stream:  # type: ignore[arg-type]
        assert stream.read(1) == b"a"
        assert list(stream) == [b"bc", b"defg", b"", b"h"]
    with DiffStream(chunks([])) as stream:  # type: ignore[arg-type]
        assert stream.read() == b"abcdefgh"


def test_stream_closed_early_ends_its_producer() -> None:
    log: list[str] = []
    with DiffStream(chunks(log), lambda: log.append("released")) as stream:  # type: ignore[arg-type]
        stream.read(1)
    assert log == ["ended", "released"]


def test_stream_dropped_is_released() -> None:
    log: list[str] = []
    stream = DiffStream(chunks(log), lambda: log.append("released"))  # type: ignore[arg-type]
    stream.read(1)
    del stream
    assert log == ["ended", "released"]


def test_a_layer_whose_server_dies_is_no_smaller_layer(stacked: Driver) -> None:
    for number in range(50):
        (Path(stacked.root) / f"diff/1/{number:02}").write_bytes(bytes(100_000))
    with stacked.diff("2") as stream:
        stream.read(1_000_000)
        kill(f"{stacked.root}/mnt/2")
        with pytest.raises(OSError) as caught:
            stream.read()
    assert caught.value.errno in (errno.ENOTCONN, errno.ECONNABORTED)
