"""Inode numbers: the same file keeps its number, two files never share one.

A number is computed from where the file lies, (filesystem, inode), so it needs no memory and is the
same after the kernel has forgotten the file. Only what was copied up needs a record, because it
lies elsewhere now and must keep the number it had: a sparse file, indexed by the new inode number,
as aufs does with its xino file (aufs.md 4.2). It has no name, so it vanishes with the mount. Each
branch has its own: one inode on two branches is two files.

The space of 64 bits is cut like this::

    1                      the root (FUSE wants it so)
    11 .. 2^47-1           inodes of the first filesystem, as they are
    2^47 ..                other filesystems: (filesystem << 48) | inode
    2^62 ..                numbers given out one by one, where the computed one is taken
    2^63 ..                hashes of inode numbers too large for the above
"""

from __future__ import annotations

import hashlib
import logging
import os
import struct
from typing import TYPE_CHECKING, Final

from unionfs import syscalls

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT_NUMBER: Final = 1
_FIRST_NUMBER: Final = 11
_INODE_BITS: Final = 47
_GIVEN_OUT: Final = 1 << 62
_HASHED: Final = 1 << 63
_RECORD: Final = struct.Struct("=Q")
_SPARSE_LIMIT: Final = 1 << 40  # inodes above this would exceed the file size of ext4

log = logging.getLogger(__name__)


class InodeNumbers:
    """Computes and remembers the inode numbers of one union.

    Args:
        directory_fd: a directory on a writable filesystem for the record file, or -1.
    """

    def __init__(self, directory_fd: int = -1) -> None:
        self._directory_fd = directory_fd
        self._filesystems: dict[int, int] = {}
        self._given_out = _GIVEN_OUT
        self._files: dict[tuple[int, int], int] = {}
        self._overflow: dict[tuple[int, int, int], int] = {}
        self._warned = False

    def close(self) -> None:
        """Drop the record."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def number(self, branch: int, device: int, inode: int, taken: Callable[[int], bool]) -> int:
        """Return the number of a file that is not known yet.

        Args:
            branch, device, inode: where it lies: index of the branch, ``st_dev``, ``st_ino``.
            taken: tells whether a number belongs to another live file.
        """
        number = self.origin(branch, device, inode) or self.computed(device, inode)
        if taken(number):
            # Two files claim one number: a link between branches, one that copy-up broke, or an
            # inode used again while the kernel still holds the old file. The newcomer gets a
            # number of its own.
            while taken(number):
                self._given_out += 1
                number = self._given_out
            self.record(branch, device, inode, number)
        return number

    def computed(self, device: int, inode: int) -> int:
        """Return the number that follows from the place alone."""
        filesystem = self._filesystems.setdefault(device, len(self._filesystems))
        if inode >= 1 << _INODE_BITS or filesystem >= 1 << 13:
            digest = hashlib.blake2b(b"%d %d" % (filesystem, inode), digest_size=8).digest()
            return _HASHED | int.from_bytes(digest)
        if filesystem == 0:
            return inode if inode >= _FIRST_NUMBER else 1 << _INODE_BITS | inode
        return filesystem << (_INODE_BITS + 1) | inode

    def origin(self, branch: int, device: int, inode: int) -> int:
        """Return the recorded number of a copied-up file, or 0."""
        if self._overflow:
            number = self._overflow.get((branch, device, inode), 0)
            if number:
                return number
        fd = self._files.get((branch, device), -1)
        if fd < 0 or inode >= _SPARSE_LIMIT:
            return 0
        data = os.pread(fd, _RECORD.size, inode * _RECORD.size)
        return int(_RECORD.unpack(data)[0]) if len(data) == _RECORD.size else 0

    def record(self, branch: int, device: int, inode: int, number: int) -> None:
        """Remember that the file at (branch, device, inode) has ``number``."""
        if number == self.computed(device, inode):
            self.drop(branch, device, inode)
            return
        if inode < _SPARSE_LIMIT and self._write(branch, device, inode, number):
            return
        self._overflow[branch, device, inode] = number

    def drop(self, branch: int, device: int, inode: int) -> None:
        """Forget a record: the file is gone, and its inode may serve another."""
        self._overflow.pop((branch, device, inode), None)
        if self.origin(branch, device, inode):
            self._write(branch, device, inode, 0)

    def _write(self, branch: int, device: int, inode: int, number: int) -> bool:
        try:
            fd = self._files.get((branch, device), -1)
            if fd < 0:
                if self._directory_fd < 0:
                    return False
                fd = self._files[branch, device] = _nameless_file(self._directory_fd)
            os.pwrite(fd, _RECORD.pack(number), inode * _RECORD.size)
        except OSError as error:
            if not self._warned:
                self._warned = True
                log.warning("inode numbers are kept in memory: no record file (%s)", error)
            return False
        return True


def _nameless_file(directory_fd: int) -> int:
    try:
        return syscalls.anonymous_file(directory_fd)
    except OSError:
        return os.memfd_create("xino", os.MFD_CLOEXEC)
