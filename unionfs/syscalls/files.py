"""Calls on files: renames with flags, links to descriptors, sharing of blocks, birth times."""

import ctypes
import fcntl
import os
import struct

from unionfs.syscalls._libc import fail, libc

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_FICLONE = 0x40049409
_AT_SYMLINK_NOFOLLOW = 0x100
_AT_SYMLINK_FOLLOW = 0x400
_AT_EMPTY_PATH = 0x1000
_AT_FDCWD = -100
_STATX_BTIME = 0x800
# struct statx: stx_mask first, stx_btime (seconds, nanoseconds) at offset 80 (statx(2)).
_STATX_SIZE = 256
_STATX_MASK = struct.Struct("=I")
_STATX_BTIME_AT = (80, struct.Struct("=qI"))


def renameat2(src_fd: int, src: bytes, dst_fd: int, dst: bytes, flags: int) -> None:
    """Rename with ``RENAME_*`` flags (renameat2(2)).

    Raises:
        OSError: ``EEXIST`` with ``RENAME_NOREPLACE`` on a taken name, ``EINVAL`` where the
            filesystem lacks the flag, otherwise as rename(2).
    """
    if libc.renameat2(
        ctypes.c_int(src_fd),
        ctypes.c_char_p(src),
        ctypes.c_int(dst_fd),
        ctypes.c_char_p(dst),
        ctypes.c_uint(flags),
    ):
        fail(src)


def link_fd(fd: int, dir_fd: int, name: bytes) -> None:
    """Give the file behind ``fd`` the name ``name`` below ``dir_fd``.

    Works for ``O_PATH`` and ``O_TMPFILE`` descriptors, without a privilege, through ``/proc``.

    Raises:
        OSError: ``EEXIST`` on a taken name, ``ENOENT`` for a file that has lost its last name.
    """
    if libc.linkat(
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(b"/proc/self/fd/%d" % fd),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(name),
        ctypes.c_int(_AT_SYMLINK_FOLLOW),
    ):
        fail(name)


def ficlone(dst_fd: int, src_fd: int) -> None:
    """Let ``dst_fd`` share all blocks of ``src_fd`` (ioctl_ficlone(2)).

    Raises:
        OSError: ``EOPNOTSUPP``, ``EXDEV`` or ``EINVAL`` where the filesystem cannot.
    """
    fcntl.ioctl(dst_fd, _FICLONE, src_fd)


def statx_birth(dir_fd: int, name: bytes) -> int:
    """Return the time of birth of ``name`` below ``dir_fd``, or of ``dir_fd`` itself for no name.

    Returns:
        Nanoseconds since the epoch; 0 where the filesystem records no birth.
    """
    buffer = ctypes.create_string_buffer(_STATX_SIZE)
    if libc.statx(
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(name),
        ctypes.c_int(_AT_SYMLINK_NOFOLLOW | (0 if name else _AT_EMPTY_PATH)),
        ctypes.c_uint(_STATX_BTIME),
        buffer,
    ):
        fail(name)
    if not _STATX_MASK.unpack_from(buffer)[0] & _STATX_BTIME:
        return 0
    offset, form = _STATX_BTIME_AT
    seconds, nanoseconds = form.unpack_from(buffer, offset)
    return int(seconds) * 1_000_000_000 + int(nanoseconds)


def anonymous_file(dir_fd: int, mode: int = 0o600) -> int:
    """Open a nameless file on the filesystem of ``dir_fd`` (``O_TMPFILE``)."""
    return os.open(b".", os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, mode, dir_fd=dir_fd)
