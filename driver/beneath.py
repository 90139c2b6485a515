"""Walking a directory that a stranger filled, without ever being led out of it.

Every open is relative to a descriptor that was opened before, follows no symbolic link and does not
enter a mount on the way (design rule: everything by descriptor). Paths are relative ``bytes`` and
may be longer than the 4096 bytes of one system call; they are taken in pieces.
"""

from __future__ import annotations

import errno
import functools
import os

from unionfs import syscalls

_ONE_STEP = syscalls.RESOLVE_NO_MAGICLINKS | syscalls.RESOLVE_NO_XDEV
_CONFINED = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_SYMLINKS | _ONE_STEP
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_AT_FDCWD = -100
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


@functools.cache
def kernel_resolves() -> bool:
    """Tell whether ``openat2`` can be used here; old kernels and some sandboxes lack it."""
    try:
        os.close(syscalls.openat2(_AT_FDCWD, b"/", os.O_PATH, resolve=_ONE_STEP))
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.EPERM, errno.EINVAL):
            raise  # no descriptor is left, say: that is no answer to be remembered
        return False
    return True


def open_child(dir_fd: int, name: bytes, flags: int, *, openat2: bool | None = None) -> int:
    """Open one component, not following it and not entering a mount.

    Args:
        dir_fd: directory to look in.
        name: one component.
        flags: ``O_*`` flags; ``O_NOFOLLOW`` and close-on-exec are added.
        openat2: False does without that call; None finds out.

    Raises:
        OSError: ``EXDEV`` when something is mounted on ``name``, otherwise as open(2).
    """
    flags |= os.O_NOFOLLOW | os.O_CLOEXEC
    if kernel_resolves() if openat2 is None else openat2:
        return syscalls.openat2(dir_fd, name, flags, resolve=_ONE_STEP)
    fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        if _mount_id(fd) != _mount_id(dir_fd):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_directory(root_fd: int, path: bytes) -> int:
    """Open the directory ``path`` below ``root_fd``; the empty path is the root itself.

    Args:
        root_fd: descriptor of a directory.
        path: components joined by ``/``, no leading slash.

    Returns:
        A descriptor for reading, owned by the caller.

    Raises:
        OSError: an errno of ``ABSENT`` when there is no such directory in this tree.
    """
    fd = -1
    rest = path or b"."
    while rest:
        piece, rest = _cut(rest)
        try:
            deeper = _open_piece(root_fd if fd < 0 else fd, piece)
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


def _open_piece(dir_fd: int, piece: bytes) -> int:
    if kernel_resolves():
        return syscalls.openat2(dir_fd, piece, _DIRECTORY, resolve=_CONFINED)
    return open_child(dir_fd, piece, _DIRECTORY)


def _mount_id(fd: int) -> bytes:
    with open(f"/proc/self/fdinfo/{fd}", "rb") as info:
        return next((line for line in info if line.startswith(b"mnt_id:")), b"")


def _cut(path: bytes) -> tuple[bytes, bytes]:
    """Split off what is opened in one call."""
    if not kernel_resolves():
        head, _, rest = path.partition(b"/")
        return head, rest
    if len(path) <= _PIECE:
        return path, b""
    head, _, tail = path[:_PIECE].rpartition(b"/")
    return head, tail + path[_PIECE:]
