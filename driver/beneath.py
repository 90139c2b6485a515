"""Walking a directory that a stranger filled, without ever being led out of it.

Every open is relative to a descriptor that was opened before, follows no symbolic link and does not
enter a mount on the way (design rule: everything by descriptor). Paths are relative ``bytes`` and
may be longer than the 4096 bytes of one system call; they are taken in pieces.
"""

from __future__ import annotations

import errno
import os

from unionfs import syscalls

_CONFINED = (
    syscalls.RESOLVE_BENEATH
    | syscalls.RESOLVE_NO_SYMLINKS
    | syscalls.RESOLVE_NO_XDEV
    | syscalls.RESOLVE_NO_MAGICLINKS
)
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PIECE = 4000  # bytes; the kernel takes 4095 in one call

# What an open says when the path does not lead to a directory of this tree: missing, a file in the
# way, a symbolic link in the way, a mount in the way.
ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV})


def open_root(path: str) -> int:
    """Open the directory that everything else will be relative to.

    Raises:
        OSError: ``ENOENT``, ``ENOTDIR``, ``ELOOP`` when ``path`` is a symbolic link.
    """
    return os.open(path, _DIRECTORY)


def open_directory(root_fd: int, path: bytes, resolve: int = _CONFINED) -> int:
    """Open the directory ``path`` below ``root_fd``; the empty path is the root itself.

    Args:
        root_fd: descriptor of a directory.
        path: components joined by ``/``, no leading slash.
        resolve: ``RESOLVE_*`` bits in place of the strictest ones.

    Returns:
        A descriptor for reading, owned by the caller.

    Raises:
        OSError: an errno of ``ABSENT`` when there is no such directory in this tree.
    """
    fd = -1
    rest = path or b"."
    while rest:
        piece, rest = _cut(rest)
        start = root_fd if fd < 0 else fd
        try:
            deeper = syscalls.openat2(start, piece, _DIRECTORY, resolve=resolve)
        finally:
            if fd >= 0:
                os.close(fd)
        fd = deeper
    return fd


def find(dir_fd: int, name: bytes) -> os.stat_result | None:
    """Return the attributes of the entry ``name``, or None when there is none."""
    try:
        return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _cut(path: bytes) -> tuple[bytes, bytes]:
    if len(path) <= _PIECE:
        return path, b""
    head, _, tail = path[:_PIECE].rpartition(b"/")
    return head, tail + path[_PIECE:]
