"""A layer as a stream of bytes (driver.md part 2, ``DiffStream``).

The tar is produced while it is read: nothing runs ahead, nothing is kept but the chunk at hand. So
closing early simply stops the producer, in the middle of a file if need be, and then gives back
what it held, such as a mount. A forked child has a copy of the stream, but the mount is not its to
give back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Generator, Iterator
from types import TracebackType
from typing import Self


class DiffStream:
    """A binary readable made of a producer of chunks. Iterable, and a context manager.

    Args:
        chunks: the producer; closed with the stream.
        release: called once when the stream is closed, whatever the reason.
    """

    def __init__(
        self,
        chunks: Generator[bytes, None, None],
        release: Callable[[], None] = lambda: None,
    ) -> None:
        self._chunks = chunks
        self._release = release
        self._rest = b""
        self._closed = False
        self._failure: Exception | None = None
        self._process = os.getpid()
        self._mutex = threading.RLock()

    def read(self, size: int | None = -1, /) -> bytes:
        """Return the next ``size`` bytes, less only at the end; everything when negative.

        Raises:
            ValueError: the stream is closed.
            OSError, ArchiveError: the layer cannot be read any further, now or at an earlier try.
        """
        with self._mutex:
            self._check_open()
            wanted = -1 if size is None else size
            pieces = [self._rest]
            got = len(self._rest)
            self._rest = b""
            while wanted < 0 or got < wanted:
                chunk = self._produced()
                if chunk is None:
                    break
                pieces.append(chunk)
                got += len(chunk)
            data = b"".join(pieces)
            if 0 <= wanted < got:
                data, self._rest = data[:wanted], data[wanted:]
            return data

    def readable(self) -> bool:
        """Tell that this can be read, as file objects do."""
        return True

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def close(self) -> None:
        """Stop the producer and give back what it held; a second call does nothing."""
        with self._mutex:
            if self._closed:
                return
            self._closed = True
            self._rest = b""
            try:
                self._chunks.close()
            finally:
                if os.getpid() == self._process:
                    self._release()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        """Return the next chunk, of whatever size is at hand."""
        with self._mutex:
            self._check_open()
            if self._rest:
                chunk, self._rest = self._rest, b""
                return chunk
            produced = self._produced()
            if produced is None:
                raise StopIteration
            return produced

    def _produced(self) -> bytes | None:
        """Return the next chunk, None at the end; an error is an error for ever."""
        if self._failure is not None:
            raise self._failure
        try:
            return next(self._chunks, None)
        except Exception as error:
            self._failure = error
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # A stream that was dropped unread must not keep a container's root mounted for ever.
        if not getattr(self, "_closed", True):
            self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError("the diff stream is closed")
