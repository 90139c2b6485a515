"""Open files: reading, writing, and what stays true while a file changes its place.

All handles of a file share one descriptor, that of its node. So a handle opened for reading follows
the file when another one causes its copy-up, and a file that has lost its names is still read,
written and measured through it (aufs.md 5.7).
"""

from __future__ import annotations

import contextlib
import os
import stat
from errno import EAGAIN, EBADF, EINVAL, EMFILE, ENFILE, EOPNOTSUPP
from typing import TYPE_CHECKING, Final

from unionfs.union.copyup import copy_up
from unionfs.union.lookup import locate
from unionfs.union.nodes import reopen
from unionfs.union.operation import Job, Operation

if TYPE_CHECKING:
    from unionfs.union.nodes import FileNode
    from unionfs.union.state import State

_WRITES: Final = (os.O_WRONLY, os.O_RDWR)


class FileHandle:
    """An open file as a program sees it.

    Attributes:
        node: the file.
        writable: it was opened for writing.
        sync: every write must be on disk before it is answered (``O_SYNC``, ``O_DSYNC``).
    """

    __slots__ = ("node", "sync", "writable")

    def __init__(self, node: FileNode, flags: int) -> None:
        self.node = node
        self.writable = flags & os.O_ACCMODE in _WRITES
        self.sync = bool(flags & os.O_DSYNC)  # O_SYNC contains this bit


def open_file(
    state: State, node: FileNode, flags: int, *, privileged: bool = True
) -> Operation[FileHandle]:
    """Open a file. Nothing is copied up by this, unless ``O_TRUNC`` is given.

    Args:
        flags: as open(2); what concerns names and caches is the kernel's business.
        privileged: the caller may change a file without its setuid and setgid bits being lost.

    Raises:
        OSError: ``EROFS`` for writing without a writable branch at or above the file.
    """
    handle = FileHandle(node, flags)
    truncate = bool(flags & os.O_TRUNC)  # POSIX leaves it open for O_RDONLY; Linux truncates
    if handle.writable or truncate:
        state.target(node.branch)
    # Nobody waits here for a copy-up in flight: the node's descriptor is exchanged at its end.
    _acquire(state, node, writable=handle.writable or truncate)
    if truncate:
        try:
            if not (yield from copy_up(state, node, keep=0)):
                os.ftruncate(node.fd, 0)
            _lose_privileges(state, node, privileged=privileged)
        except BaseException:
            release(state, handle)
            raise
    return handle


def _lose_privileges(state: State, node: FileNode, *, privileged: bool) -> None:
    """Take away what made a file run with its owner's rights: its content is another now.

    The kernel does so before writes and truncations, but leaves open with ``O_TRUNC`` to us.
    """
    mode = stat.S_IMODE(os.fstat(node.fd).st_mode)
    lost = 0 if privileged else stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
    if mode & lost:
        os.fchmod(node.fd, mode & ~lost)
        state.stale.add(node.number)
    with contextlib.suppress(OSError):  # most files have none
        os.removexattr(node.fd, "security.capability")


def opened(node: FileNode, fd: int, flags: int) -> FileHandle:
    """Return a handle of a file that was just created; ``fd`` belongs to the node from now on."""
    if node.fd >= 0:
        os.close(node.fd)
    node.fd, node.fd_writable = fd, True
    node.handles += 1
    return FileHandle(node, flags)


def _acquire(state: State, node: FileNode, *, writable: bool) -> None:
    _ensure_open(state, node, writable=writable and node.branch.writable)
    node.handles += 1


def _ensure_open(state: State, node: FileNode, *, writable: bool) -> None:
    """Have the node hold a descriptor, one for writing if that is asked for."""
    if node.fd >= 0 and (node.fd_writable or not writable):
        return
    flags = os.O_RDWR if writable else os.O_RDONLY
    try:
        fd = _open_again(state, node, flags)
    except OSError as error:
        if error.errno not in (EMFILE, ENFILE) or not state.directories.make_room():
            raise
        fd = _open_again(state, node, flags)
    if node.fd >= 0:
        os.close(node.fd)
    node.fd, node.fd_writable = fd, writable


def _open_again(state: State, node: FileNode, flags: int) -> int:
    if node.held >= 0 and not node.names:
        return reopen(node.held, flags)
    directory, name, _ = locate(state, node)
    return directory.open_file(name, flags)


def release(state: State, handle: FileHandle) -> None:
    """Close a handle."""
    node = handle.node
    node.handles -= 1
    if node.handles > 0:
        return
    if node.fd >= 0:
        if not node.names and node.pin < 0 and node.lookups > 0:
            _pin_open(node)
        os.close(node.fd)
        node.fd, node.fd_writable = -1, False
    state.nodes.release(node)


def _pin_open(node: FileNode) -> None:
    """Keep a file in reach that is about to be closed, for no name of it is known."""
    try:
        node.pin_to(node.fd)
    except OSError:  # no descriptor is left
        if node.unlinked:
            node.last = os.fstat(node.fd)


def read(handle: FileHandle, offset: int, size: int) -> bytes | bytearray | Job:
    """Read from a file.

    Returns:
        The bytes, fewer than ``size`` only at the end of the file; or a job that returns them, when
        they must be fetched from a slow disk first.
    """
    fd = handle.node.fd
    buffer = bytearray(size)
    try:
        count = os.preadv(fd, [buffer], offset, os.RWF_NOWAIT)
    except OSError as error:
        if error.errno == EAGAIN:
            return _read_job(fd, offset, size)
        if error.errno in (EOPNOTSUPP, EINVAL):
            return os.pread(fd, size, offset)
        raise
    if count == size or offset + count >= os.fstat(fd).st_size:
        del buffer[count:]
        return buffer
    return _read_job(fd, offset, size)


def _read_job(fd: int, offset: int, size: int) -> Job:
    own = os.dup(fd)

    def work() -> bytes:
        try:
            return os.pread(own, size, offset)
        finally:
            os.close(own)

    return Job(work)


def write(state: State, handle: FileHandle, offset: int, data: bytes) -> Operation[int]:
    """Write to a file, after copy-up.

    Returns:
        How many bytes were written; fewer than given only when the branch ran full on the way.

    Raises:
        OSError: ``ENOSPC``, ``EROFS`` and the like.
    """
    node = handle.node
    if not handle.writable:
        raise OSError(EBADF, "not opened for writing")
    if not (node.branch.writable and node.fd_writable):
        yield from copy_up(state, node)
        _ensure_open(state, node, writable=True)
    count = os.pwrite(node.fd, data, offset)
    if handle.sync:
        yield _sync_job(node.fd, data_only=False)
    return count


def sync(handle: FileHandle, *, data_only: bool) -> Operation[None]:
    """Bring a file to disk; nothing to do for one that this handle cannot have changed."""
    node = handle.node
    if handle.writable and node.branch.writable and node.fd >= 0:
        yield _sync_job(node.fd, data_only=data_only)


def _sync_job(fd: int, *, data_only: bool) -> Job:
    own = os.dup(fd)

    def work() -> None:
        try:
            (os.fdatasync if data_only else os.fsync)(own)
        finally:
            os.close(own)

    return Job(work)


def flush(handle: FileHandle) -> Operation[None]:
    """Let a network filesystem report what went wrong: it does so when a descriptor is closed."""
    if handle.writable and handle.node.fd >= 0:
        own = os.dup(handle.node.fd)
        yield Job(lambda: os.close(own))
