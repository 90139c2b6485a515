"""System calls that Python has no function for, or hides the errnos of."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4


def _result(value: int) -> int:
    if value < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return value


def renameat2(source: Path, target: Path, flags: int) -> None:
    """rename(2) with flags."""
    _result(_libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flags))


def getxattr_into(path: Path, key: bytes, size: int) -> int:
    """Read an attribute into a buffer of ``size`` bytes; returns the length of the value."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _result(_libc.getxattr(os.fsencode(path), key, buffer, ctypes.c_size_t(size)))


def listxattr_into(path: Path, size: int) -> int:
    """List the attributes into a buffer of ``size`` bytes; returns the length of the list."""
    buffer = ctypes.create_string_buffer(max(size, 1))
    return _result(_libc.listxattr(os.fsencode(path), buffer, ctypes.c_size_t(size)))


def fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) itself, without the emulation that posix_fallocate(3) has."""
    _result(_libc.fallocate64(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)))
