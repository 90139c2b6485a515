"""``openat2``: opening below a directory without being led out of it.

A layer is written by a stranger, so the kernel itself must refuse to leave the branch: a check
made before the open would be out of date by the time of the open (openat2(2), Linux 5.6).
"""

import ctypes
import errno
import os

from unionfs.syscalls._libc import fail, libc

_SYS_OPENAT2 = 437  # the number is the same on every architecture (added after unification)

RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

_RETRIES = 32  # EAGAIN: a rename ran while ".." was resolved; the kernel asks for another try


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def openat2(dir_fd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """Open ``path`` relative to ``dir_fd`` under the given resolution limits.

    Args:
        dir_fd: descriptor of the directory to start from.
        path: relative path, less than 4096 bytes.
        flags: ``O_*`` flags; close-on-exec is always added.
        mode: permission bits of a file that is created, else 0.
        resolve: ``RESOLVE_*`` bits.

    Returns:
        A new descriptor, owned by the caller.

    Raises:
        OSError: ``EXDEV`` when the path would leave the limits, ``ELOOP`` at a refused symbolic
            link, otherwise as open(2).
        ValueError: the path contains a NUL; the kernel would see only what is before it.
    """
    if b"\0" in path:
        raise ValueError("embedded null byte")
    how = _OpenHow(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_RETRIES):
        fd = libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(dir_fd),
            ctypes.c_char_p(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        )
        if fd >= 0:
            return int(fd)
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    return fail(path)
