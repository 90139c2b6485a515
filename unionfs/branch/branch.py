"""One branch of a union: its permission, its root descriptor, and what its filesystem can do.

The root is opened once, before the union is mounted, and everything below is reached from that
descriptor. Where the daemon may (it has the right to mount), the root is a private view of the
branch in which nothing is mounted on top: mounts below a branch are not entered, as in aufs
(aufs.md 1.1). Elsewhere the kernel is told not to cross into them.
"""

from __future__ import annotations

import itertools
import os
from errno import EEXIST
from typing import TYPE_CHECKING, Final

from unionfs import syscalls
from unionfs.branch.directory import Directory
from unionfs.branch.errors import BranchError
from unionfs.branch.forms import (
    ORPHAN_DIRECTORY,
    PLINK_DIRECTORY,
    WHITEOUT_BASE,
    temporary_name,
)
from unionfs.branch.writable import WritableDirectory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from unionfs.branch.permission import Permission

# A path handed to the kernel in one call must stay below 4096 bytes, so long ones go in pieces.
_PIECE: Final = 3500
_REMOTE: Final = {0x6969: "nfs", 0xFF534D42: "cifs", 0xFE534D42: "smb2", 0x01021997: "9p"}
_IN_MEMORY: Final = {0x01021994: "tmpfs", 0x858458F6: "ramfs"}


class Branch:
    """A branch that is only read.

    Attributes:
        path: where the user said it is; for messages and listings, never opened again.
        index: its place in the union, 0 is the top.
        permission: its permission and attributes.
        whable: True when its whiteouts and opaque marks are honoured.
        walled: True when mounts below it cannot be reached from its root descriptor.
        foreign: True when whiteouts and opaque marks of other union filesystems count too.
        nosuid: True when setuid bits on it have no effect.
        remote: True for a network filesystem.
        in_memory: True where fsync has nothing to do (tmpfs).
        root: its top directory.
    """

    writable: bool = False
    directory_type: type[Directory] = Directory

    def __init__(
        self,
        path: bytes,
        index: int,
        permission: Permission,
        fd: int,
        *,
        walled: bool,
        magic: int = 0,
        foreign: bool = False,
    ) -> None:
        self.path = path
        self.index = index
        self.permission = permission
        self.whable = permission.whable
        self.walled = walled
        self.remote = magic in _REMOTE
        self.in_memory = magic in _IN_MEMORY
        self.resolve = (
            syscalls.RESOLVE_BENEATH
            | syscalls.RESOLVE_NO_SYMLINKS
            | syscalls.RESOLVE_NO_MAGICLINKS
            | (0 if walled else syscalls.RESOLVE_NO_XDEV)
        )
        self.foreign = foreign and self.whable
        self.root = self.directory_type(self, fd)
        self.nosuid = bool(os.fstatvfs(fd).f_flag & os.ST_NOSUID)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self}>"

    def __str__(self) -> str:
        return f"{os.fsdecode(self.path)}={self.permission}"

    def open_directory(self, names: Sequence[bytes]) -> Directory:
        """Open the directory reached from the root by ``names``.

        Raises:
            OSError: ``ENOENT`` or ``ENOTDIR`` when it is not there, ``ELOOP`` when a symbolic link
                has taken its place, ``EXDEV`` when something is mounted on the way.
        """
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
        fd = self.root.fd
        try:
            for piece in _pieces(names):
                deeper = syscalls.openat2(fd, piece, flags, resolve=self.resolve)
                if fd != self.root.fd:
                    os.close(fd)
                fd = deeper
        except BaseException:
            if fd != self.root.fd:
                os.close(fd)
            raise
        return self.directory_type(self, fd if fd != self.root.fd else os.dup(fd))

    def close(self) -> None:
        """Give all descriptors back."""
        self.root.close()


class WritableBranch(Branch):
    """A branch that the union changes.

    Attributes:
        whiteout_base: the file in the root that whiteouts are hard links of; empty with
            ``nolwh`` or on a filesystem without hard links.
        lock_fd: descriptor whose lock keeps a second union off this branch, or -1.
    """

    writable = True
    directory_type = WritableDirectory
    root: WritableDirectory

    def __init__(
        self,
        path: bytes,
        index: int,
        permission: Permission,
        fd: int,
        *,
        walled: bool,
        magic: int = 0,
        foreign: bool = False,
        lock_fd: int = -1,
    ) -> None:
        super().__init__(path, index, permission, fd, walled=walled, magic=magic, foreign=foreign)
        self.whiteout_base = b"" if permission.nolwh else WHITEOUT_BASE
        self.lock_fd = lock_fd
        self._counter = itertools.count(int.from_bytes(os.urandom(2)))

    def next_count(self) -> int:
        """Return the next number for a temporary name."""
        return next(self._counter)

    def prepare(self, *, plink: bool) -> None:
        """Create what a writable branch carries at its top (aufs.md 2.1).

        Args:
            plink: also the directory of pseudo-links.

        Raises:
            BranchError: ``EEXIST`` when something of another type has one of the names.
        """
        if self.whiteout_base:
            status = self.root.find(WHITEOUT_BASE)
            if status is None:
                self.renew_whiteout_base()
            elif status.st_mode & 0o170000 != 0o100000:
                raise self._occupied(WHITEOUT_BASE, "a regular file")
        mode = 0o711 if self.remote else 0o700
        for name in (PLINK_DIRECTORY, ORPHAN_DIRECTORY) if plink else (ORPHAN_DIRECTORY,):
            status = self.root.find(name)
            if status is None:
                os.mkdir(name, mode, dir_fd=self.root.fd)
                self.root.set_mode(name, mode)
            elif status.st_mode & 0o170000 != 0o040000:
                raise self._occupied(name, "a directory")

    def _occupied(self, name: bytes, wanted: str) -> BranchError:
        place = os.fsdecode(os.path.join(self.path, name))
        return BranchError(
            EEXIST, f"{place} is not {wanted} (EEXIST): the union needs that name, move it away"
        )

    def renew_whiteout_base(self) -> None:
        """Put a fresh base file in place, once the old one has all the links it can take."""
        name = temporary_name(b"aufs", self.next_count())
        fd = self.root.create_file(name)
        try:
            os.fchmod(fd, 0o444)
        finally:
            os.close(fd)
        self.root.rename(name, self.root, WHITEOUT_BASE)

    def close(self) -> None:
        """Give all descriptors back, and with them the lock."""
        super().close()
        self.unlock()

    def unlock(self) -> None:
        """Let another union have the branch."""
        if self.lock_fd >= 0:
            os.close(self.lock_fd)
            self.lock_fd = -1


def _pieces(names: Sequence[bytes]) -> list[bytes]:
    """Join ``names`` with slashes into as few paths as the kernel's limit allows."""
    pieces: list[bytes] = []
    start = length = 0
    for end, name in enumerate(names):
        if length + len(name) > _PIECE and end > start:
            pieces.append(b"/".join(names[start:end]))
            start, length = end, 0
        length += len(name) + 1
    if start < len(names):
        pieces.append(b"/".join(names[start:]))
    return pieces
