"""System calls as they are: with flags and errors that Python's functions hide or do not have."""

from __future__ import annotations

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)

AT_FDCWD = -100
AT_SYMLINK_NOFOLLOW = 0x100
AT_EACCESS = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
UTIME_NOW = (1 << 30) - 1
UTIME_OMIT = (1 << 30) - 2
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64))


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def utimensat(
    path: str, accessed: tuple[int, int], modified: tuple[int, int], flags: int = 0
) -> None:
    """utimensat(2); each time is (seconds, nanoseconds), the latter may be UTIME_NOW or _OMIT."""
    times = (_Timespec * 2)(_Timespec(*accessed), _Timespec(*modified))
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), times, flags))


def utimensat_now(path: str, flags: int = 0) -> None:
    """utimensat(2) without times."""
    _checked(_libc.utimensat(AT_FDCWD, os.fsencode(path), None, flags))


def futimens(fd: int, accessed: tuple[int, int], modified: tuple[int, int]) -> None:
    """futimens(3)."""
    times = (_Timespec * 2)(_Timespec(*accessed), _Timespec(*modified))
    _checked(_libc.futimens(fd, times))


def faccessat(path: str, mode: int, flags: int = 0) -> None:
    """faccessat(2), which tells why not."""
    _checked(_libc.faccessat(AT_FDCWD, os.fsencode(path), mode, flags))


def linkat(source: str, target: str, flags: int = 0) -> None:
    """linkat(2)."""
    _checked(_libc.linkat(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def link_descriptor(fd: int, target: str) -> None:
    """Give an open file a name, by way of /proc."""
    linkat(f"/proc/self/fd/{fd}", target, AT_SYMLINK_FOLLOW)


def renameat2(source: str, target: str, flags: int) -> None:
    """renameat2(2)."""
    _checked(_libc.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) without the emulation of posix_fallocate(3)."""
    _checked(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))
