"""System calls that Python has no function for, or hides the errnos of."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_CLONE_NEWUSER = 0x10000000
_OPEN_TREE_CLONE = 1
_MOVE_FROM_EMPTY_PATH = 4
_MOUNT_ATTR_IDMAP = 0x100000
# The numbers are the same on every architecture.
_SYS_OPEN_TREE, _SYS_MOVE_MOUNT, _SYS_MOUNT_SETATTR = 428, 429, 442

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


def bind_id_mapped(source: Path, target: Path, stored: int, shown: int, count: int) -> None:
    """Bind ``source`` on ``target``, where ids from ``stored`` on are seen from ``shown`` on.

    mount_setattr(2) takes the map from a user namespace, made here by a process for this alone.
    """
    waiting, wake = os.pipe()
    ready, tell = os.pipe()
    keeper = os.fork()
    if keeper == 0:
        try:
            os.close(wake)
            _result(_libc.unshare(_CLONE_NEWUSER))
            os.write(tell, b"x")
            os.read(waiting, 1)
        finally:
            os._exit(0)
    try:
        os.close(tell)
        assert os.read(ready, 1), "no user namespace can be made"
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{keeper}", name).write_text(f"{stored} {shown} {count}")
        namespace = os.open(f"/proc/{keeper}/ns/user", os.O_RDONLY)
        tree = _result(
            _libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(source), _OPEN_TREE_CLONE)
        )
        change = struct.pack("QQQQ", _MOUNT_ATTR_IDMAP, 0, 0, namespace)
        _result(_libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, change, len(change)))
        _result(
            _libc.syscall(
                _SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_FROM_EMPTY_PATH
            )
        )
        os.close(tree)
        os.close(namespace)
    finally:
        for fd in (waiting, wake, ready):
            os.close(fd)
        os.waitpid(keeper, 0)
