"""A layer tar as a stream of entries, read once from front to back (driver.md 7.3).

The stream may be a pipe, may return less than it was asked for, and cannot seek. It was made by a
stranger. Therefore: memory is constant whatever a header claims (content passes through in
pieces, extended headers and sparse maps have a limit), every loop consumes input, and what is not
a complete and well-formed archive ends in ``InvalidArchiveError``.

Completeness is shown by the end marker alone. A stream that stops between two entries without one
was cut off, and a layer with files missing must not pass for the whole; only a stream of no bytes
at all is the empty layer. What follows the marker is read to its end and ignored, so that whoever
writes into the pipe can finish.

Where an archive can be understood in two ways this reader sides with Go's, which is what engines
use: an entry that a scanner and an extractor read differently is an old way to hide things.
"""

import enum
import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from driver.archive import headers, pax, sparse
from driver.archive.headers import BLOCK, ZERO_BLOCK, Header
from driver.errors import InvalidArchiveError

_CHUNK = 256 * 1024  # bytes asked of the stream at a time
_MAX_NAME_SIZE = pax.MAX_RECORDS_SIZE
_NANOSECONDS = 1_000_000_000

_Records = list[tuple[bytes, bytes]]


class Readable(Protocol):
    """What a layer is read from."""

    def read(self, size: int, /) -> bytes | None:
        """Return at most ``size`` bytes, none only at the end."""


class Kind(enum.Enum):
    """Types of file that a layer can hold."""

    FILE = enum.auto()
    LINK = enum.auto()
    SYMLINK = enum.auto()
    CHAR = enum.auto()
    BLOCK = enum.auto()
    DIRECTORY = enum.auto()
    FIFO = enum.auto()


_KINDS = {
    b"\0": Kind.FILE,
    b"0": Kind.FILE,
    b"1": Kind.LINK,
    b"2": Kind.SYMLINK,
    b"3": Kind.CHAR,
    b"4": Kind.BLOCK,
    b"5": Kind.DIRECTORY,
    b"6": Kind.FIFO,
    b"7": Kind.FILE,
    b"S": Kind.FILE,
}


@dataclass(slots=True)
class Entry:
    """One member of the archive; what it claims, within bounds, but nothing of it verified.

    Attributes:
        name: raw bytes as stored; not yet cleaned.
        kind: type of file.
        mode: permission bits, 12 of them.
        uid: owner as the container numbers it.
        gid: group as the container numbers it.
        size: bytes, as the header says it for any kind; of a sparse file holes included.
        mtime: nanoseconds since the epoch; None when the archive does not say.
        atime: nanoseconds since the epoch; None when the archive does not say.
        link: target of a hard or symbolic link.
        major: of a device, else 0.
        minor: of a device, else 0.
        xattrs: names and values.
        segments: where in the file the data goes; None for all of it in one piece.
    """

    name: bytes
    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime: int | None = None
    atime: int | None = None
    link: bytes = b""
    major: int = 0
    minor: int = 0
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    segments: sparse.Segments | None = None


class _Source:
    """The bytes of the stream, in the amounts that the format wants."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._buffer = b""
        self._at = 0

    def at_end(self) -> bool:
        if self._at < len(self._buffer):
            return False
        data = self._stream.read(_CHUNK)
        if data is None:  # non-blocking, and nothing there yet
            raise BlockingIOError(errno.EAGAIN, "the stream of a layer has to block")
        self._buffer, self._at = data, 0
        return not data

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end <= len(self._buffer):
            self._at, start = end, self._at
            return self._buffer[start:end]
        return b"".join(self.pieces(size))

    def pieces(self, size: int) -> Iterator[bytes]:
        """Yield the next ``size`` bytes."""
        while size:
            if self.at_end():
                raise InvalidArchiveError("the archive ends too early")
            piece = self._buffer[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece

    def skip(self, size: int) -> None:
        for _ in self.pieces(size):
            pass

    def drain(self) -> None:
        while not self.at_end():
            self._at = len(self._buffer)


class LayerReader:
    """Iterates over the entries of a layer tar.

    The content of an entry is there until the next entry is asked for.

    Args:
        stream: the uncompressed archive; read to its end, never closed.
    """

    def __init__(self, stream: Readable) -> None:
        self._source = _Source(stream)
        self._segments: sparse.Segments = ()
        self._left = 0  # bytes of the current entry's content not read yet
        self._padding = 0  # bytes behind them that fill up the last block

    def __iter__(self) -> Iterator[Entry]:
        """Yield each entry.

        Raises:
            InvalidArchiveError: the archive is malformed or incomplete.
            OSError: the stream cannot be read.
        """
        if self._source.at_end():
            return
        while (entry := self._next()) is not None:
            yield entry
        self._source.drain()

    def content(self) -> Iterator[tuple[int, bytes]]:
        """Yield the content of the current entry as pairs of offset and data.

        Raises:
            InvalidArchiveError: the archive ends inside of it.
            OSError: the stream cannot be read.
        """
        segments, self._segments = self._segments, ()
        for offset, length in segments:
            for piece in self._source.pieces(length):
                self._left -= len(piece)
                yield offset, piece
                offset += len(piece)

    def _next(self) -> Entry | None:
        self._source.skip(self._left + self._padding)
        self._left = self._padding = 0
        records: _Records = []
        long_name = long_link = None
        extended = False
        while True:
            block = self._source.take(BLOCK)
            if block == ZERO_BLOCK:
                if extended:
                    raise InvalidArchiveError("the archive ends behind an extended header")
                if not self._source.at_end() and self._source.take(BLOCK) != ZERO_BLOCK:
                    raise InvalidArchiveError("an entry behind half an end marker")
                return None
            header = headers.parse_header(block)
            if header.type == b"g":
                # Defaults for all that follows: nothing a layer needs, so not even looked at.
                self._source.skip(header.size + headers.padding(header.size))
            elif header.type == b"x":
                records = list(pax.parse_records(self._extension(header)))
                extended = True
            elif header.type == b"L":
                long_name = headers.text(self._extension(header))
                extended = True
            elif header.type == b"K":
                long_link = headers.text(self._extension(header))
                extended = True
            else:
                return self._entry(block, header, records, long_name, long_link)

    def _extension(self, header: Header) -> bytes:
        if header.size > _MAX_NAME_SIZE:
            raise InvalidArchiveError("extended header too large")
        data = self._source.take(header.size)
        self._source.skip(headers.padding(header.size))
        return data

    def _entry(
        self,
        block: bytes,
        header: Header,
        records: _Records,
        long_name: bytes | None,
        long_link: bytes | None,
    ) -> Entry:
        kind = _KINDS.get(header.type)
        if kind is None:
            raise InvalidArchiveError(f"unknown type of entry {header.type!r}", header.name)
        entry = Entry(
            name=header.name,
            kind=kind,
            mode=header.mode,
            uid=header.uid,
            gid=header.gid,
            size=header.size,
            mtime=None if header.mtime is None else pax.clamp_time(header.mtime * _NANOSECONDS),
            link=header.link,
            major=header.major,
            minor=header.minor,
        )
        merge_records(entry, records)
        # GNU's long names come second: that is the order in which Go lets them win.
        entry.name = entry.name if long_name is None else long_name
        entry.link = entry.link if long_link is None else long_link
        _check_names(entry)
        if header.type == b"\0" and entry.name.endswith(b"/"):
            entry.kind = Kind.DIRECTORY  # V7 had no type for directories
        if entry.kind is Kind.FILE:
            self._find_content(block, header, entry, records)
        return entry

    def _find_content(self, block: bytes, header: Header, entry: Entry, records: _Records) -> None:
        stored = entry.size
        take = self._source.take
        keys = dict(records)
        if header.type == b"S":
            if not header.gnu:
                raise InvalidArchiveError("sparse entry in a foreign dialect", entry.name)
            entry.segments, entry.size = sparse.read_old_map(block, take, entry.name)
        elif _is_sparse_1_0(keys):
            # The map is part of what the header counts, and of what is padded to whole blocks.
            left = stored

            def take_of_content(size: int) -> bytes:
                nonlocal left
                left -= size
                if left < 0:
                    raise InvalidArchiveError("malformed sparse map", entry.name)
                return take(size)

            entry.segments, used = sparse.read_leading_map(take_of_content)
            entry.size = _real_size(keys, entry)
            stored -= used
        elif (found := sparse.read_record_map(records)) is not None:
            entry.segments = found
            entry.size = _real_size(keys, entry)
        if entry.segments is not None:
            sparse.check_map(entry.segments, entry.size, stored, entry.name)
        self._segments = ((0, stored),) if entry.segments is None else entry.segments
        self._left = stored
        self._padding = headers.padding(stored)


def _is_sparse_1_0(keys: dict[bytes, bytes]) -> bool:
    version = keys.get(b"GNU.sparse.major"), keys.get(b"GNU.sparse.minor")
    if version in ((b"1", b"0"), (None, None), (b"0", b"0"), (b"0", b"1")):
        return version == (b"1", b"0")
    raise InvalidArchiveError("unknown version of sparse map")


def _real_size(keys: dict[bytes, bytes], entry: Entry) -> int:
    for key in (b"GNU.sparse.realsize", b"GNU.sparse.size"):
        if key in keys:
            return pax.parse_number(keys[key], "size", headers.MAX_SIZE)
    raise InvalidArchiveError("sparse map without a size", entry.name)


def merge_records(entry: Entry, records: _Records) -> None:
    """Let the records of an extended header overrule the header block.

    An empty value means "as the block says", for an extended attribute an empty one.

    Raises:
        InvalidArchiveError: a value that is not what its key demands.
    """
    for key, value in records:
        if key.startswith(pax.XATTR_PREFIX):
            entry.xattrs[pax.xattr_name(key)] = value
        elif not value:
            continue
        elif key == b"path":
            entry.name = value
        elif key == b"linkpath":
            entry.link = value
        elif key == b"size":
            entry.size = pax.parse_number(value, "size", headers.MAX_SIZE)
        elif key == b"uid":
            entry.uid = pax.parse_number(value, "owner", headers.MAX_ID)
        elif key == b"gid":
            entry.gid = pax.parse_number(value, "group", headers.MAX_ID)
        elif key == b"mtime":
            entry.mtime = pax.parse_time(value)
        elif key == b"atime":
            entry.atime = pax.parse_time(value)
    if entry.kind is Kind.FILE:
        # The name in the block, and in "path", is a made-up one for readers without sparse files.
        for key, value in records:
            if key == b"GNU.sparse.name" and value:
                entry.name = value


def _check_names(entry: Entry) -> None:
    if b"\0" in entry.name or b"\0" in entry.link:
        raise InvalidArchiveError("name with a NUL", entry.name)
    if entry.kind in (Kind.LINK, Kind.SYMLINK) and not entry.link:
        raise InvalidArchiveError("link without a target", entry.name)
