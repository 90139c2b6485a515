"""Applying: a layer tar is carried out on a tree, its whiteouts as deletions (driver.md 7.1, 7.3).

This is the slow way in, for a tree that has no layers below it (a plain directory, or a union
seen through its mount). A whiteout deletes one name. An opaque mark deletes everything that the
directory held before this archive, and so needs to know what the archive itself has made: that is
remembered by directory identity and name, because a path can lead to one directory in two ways.

Layers that other union filesystems made may have a character device 0:0 for a whiteout, and further
names of it as hard links. Here those delete too: a union refuses to make such a device.

In a union names that begin with ``.wh.`` cannot be made, and those that a branch has do not show.
So what lies below a directory of such a name is left out there: unpacked, it would not be seen
either.

Old layers made by aufs keep the data of hard-linked files in ``.wh..wh.plnk``. Those files are
stored aside, and each link to one becomes a copy of it.
"""

import itertools
import logging
import os
import tempfile
from collections.abc import Iterator
from typing import Self

from driver.archive import whiteouts
from driver.archive.confine import Path, Place, clean_link
from driver.archive.extraction import Extraction
from driver.archive.objects import write_content
from driver.archive.reader import Entry, Kind, Readable
from driver.archive.removal import empty
from driver.archive.whiteouts import Role
from driver.errors import InvalidArchiveError
from driver.idmap import IdentityMapping

_log = logging.getLogger(__name__)

_CHUNK = 1 << 20  # bytes per read when a stored file is copied


def apply_layer(
    root_fd: int,
    stream: Readable | None,
    id_map: IdentityMapping | None = None,
    *,
    ignore_chown_errors: bool = False,
    openat2: bool | None = None,
) -> int:
    """Apply a layer to a tree.

    Args:
        root_fd: directory descriptor of the tree; stays the caller's.
        stream: the uncompressed archive, read to its end.
        id_map: from container ids to host ids; None leaves them alone.
        ignore_chown_errors: report owners that cannot be set here and go on.
        openat2: False keeps to plain open(2); None finds out what works.

    Returns:
        The sum, in bytes, of the sizes in all headers, those of skipped entries included.

    Raises:
        BreakoutError: a name leads outside of the tree.
        InvalidArchiveError: the archive is malformed, incomplete or breaks a rule of 7.1.
        IdMappingError: an owner has no counterpart on the host.
        OSError: the system refuses; what was applied until then stays.
        ValueError: there is no stream.
    """
    extraction = Extraction(
        root_fd, stream, id_map, ignore_chown_errors=ignore_chown_errors, openat2=openat2
    )
    with _StoredLinks() as stored:
        applying = _Applying(extraction, stored)
        extraction.run(applying.handle)
    return applying.size


class _Applying:
    def __init__(self, extraction: Extraction, stored: "_StoredLinks") -> None:
        self._extraction = extraction
        self._stored = stored
        self._made: set[tuple[int, int, bytes]] = set()  # device and inode of the parent, name
        self._devices: set[Path] = set()  # that were whiteouts
        self.size = 0

    def handle(self, path: Path, entry: Entry) -> None:
        self.size += entry.size
        if not path:
            self._root(entry)
            return
        try:
            self._member(path, entry)
        except PermissionError:
            reserved = next((name for name in path[:-1] if name.startswith(whiteouts.PREFIX)), None)
            if reserved is None:
                raise
            _log.warning("%r left out: the name %r is reserved here", entry.name, reserved)
            self._extraction.leave_out(path)

    def _member(self, path: Path, entry: Entry) -> None:
        role = whiteouts.role(path)
        if role is Role.PSEUDO_LINK:
            if entry.kind is Kind.FILE:
                self._stored.add(path, entry, self._extraction.reader.content())
        elif role is Role.WHITEOUT:
            self._delete((*path[:-1], whiteouts.hidden_name(path[-1])))
        elif role is Role.OPAQUE:
            place = self._extraction.place(path)
            empty(place.fd, self._was_made)
            self._extraction.root.forget()
        elif role is Role.ORDINARY:
            if self._is_foreign_whiteout(entry):
                self._delete(path)
                self._devices.add(path)
            else:
                self._create(path, entry)
                self._devices.discard(path)

    def _root(self, entry: Entry) -> None:
        maker, root_fd = self._extraction.maker, self._extraction.root_fd
        self._extraction.finish_later((), maker.attributes_of_directory(root_fd, b".", entry))

    def _is_foreign_whiteout(self, entry: Entry) -> bool:
        if entry.kind is Kind.LINK:
            return clean_link(entry.link) in self._devices
        return entry.kind is Kind.CHAR and entry.major == entry.minor == 0

    def _create(self, path: Path, entry: Entry) -> None:
        if entry.kind is Kind.LINK:
            target = clean_link(entry.link)
            if target and whiteouts.role(target) is Role.PSEUDO_LINK:
                place: Place | None = self._copy_stored(path, target)
            else:
                place = self._extraction.create(path, entry)
        else:
            place = self._extraction.create(path, entry)
        if place is not None:
            parent = os.fstat(place.fd)
            self._made.add((parent.st_dev, parent.st_ino, place.name))

    def _was_made(self, dir_fd: int, name: bytes) -> bool:
        if not self._made:
            return False
        parent = os.fstat(dir_fd)
        return (parent.st_dev, parent.st_ino, name) in self._made

    def _delete(self, path: Path) -> None:
        place = self._extraction.existing_place(path)
        if place is not None:
            parent = os.fstat(place.fd)
            self._extraction.remove(place)
            self._made.discard((parent.st_dev, parent.st_ino, place.name))

    def _copy_stored(self, path: Path, target: Path) -> Place:
        entry, content = self._stored.get(target)
        place = self._extraction.claim(path)
        self._extraction.maker.file(place.fd, place.name, entry, content)
        return place


class _StoredLinks:
    """Files of ``.wh..wh.plnk``, in a temporary directory until the archive is done."""

    def __init__(self) -> None:
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        self._entries: dict[Path, tuple[Entry, str]] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._directory is not None:
            self._directory.cleanup()

    def add(self, path: Path, entry: Entry, content: Iterator[tuple[int, bytes]]) -> None:
        if self._directory is None:
            self._directory = tempfile.TemporaryDirectory(prefix="fuse-aufs-")
        file = os.path.join(self._directory.name, str(next(self._numbers)))
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_content(fd, entry, content)
        finally:
            os.close(fd)
        self._entries[path] = entry, file

    def get(self, path: Path) -> tuple[Entry, Iterator[tuple[int, bytes]]]:
        """Return the entry stored as ``path`` and its content.

        Raises:
            InvalidArchiveError: there is none.
        """
        try:
            entry, file = self._entries[path]
        except KeyError:
            raise InvalidArchiveError("Invalid aufs hardlink", b"/".join(path)) from None
        return entry, _content_of(file, entry)


def _content_of(file: str, entry: Entry) -> Iterator[tuple[int, bytes]]:
    """Read a stored file back, only where the archive had data."""
    fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        segments = ((0, entry.size),) if entry.segments is None else entry.segments
        for start, length in segments:
            offset, end = start, start + length
            while offset < end and (data := os.pread(fd, min(_CHUNK, end - offset), offset)):
                yield offset, data
                offset += len(data)
    finally:
        os.close(fd)
