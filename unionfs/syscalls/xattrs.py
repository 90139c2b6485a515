"""Extended attributes of ``directory descriptor + name``, never following a symbolic link.

The plain calls need a path or a descriptor opened for reading; neither serves for a fifo, a device
or a symbolic link inside a hostile layer. So the object is pinned with ``O_PATH`` and reached
through ``/proc/self/fd``, whose entry leads to exactly that object, be it a link or not.
"""

import os

_PIN = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC


def pinned_path(fd: int) -> bytes:
    """Return the path under which the kernel finds the object behind descriptor ``fd``."""
    return b"/proc/self/fd/%d" % fd


def getxattr_at(dir_fd: int, name: bytes, key: bytes) -> bytes:
    """Read attribute ``key`` of ``name`` below ``dir_fd``.

    Raises:
        OSError: ``ENODATA`` when it is not there, ``EOPNOTSUPP`` where the filesystem has none.
    """
    fd = os.open(name, _PIN, dir_fd=dir_fd)
    try:
        return os.getxattr(pinned_path(fd), key)
    finally:
        os.close(fd)


def listxattr_at(dir_fd: int, name: bytes) -> list[bytes]:
    """List the attribute names of ``name`` below ``dir_fd``."""
    fd = os.open(name, _PIN, dir_fd=dir_fd)
    try:
        return [os.fsencode(key) for key in os.listxattr(pinned_path(fd))]
    finally:
        os.close(fd)


def setxattr_at(dir_fd: int, name: bytes, key: bytes, value: bytes, flags: int = 0) -> None:
    """Set attribute ``key`` of ``name`` below ``dir_fd``.

    Args:
        flags: 0, ``os.XATTR_CREATE`` or ``os.XATTR_REPLACE``.
    """
    fd = os.open(name, _PIN, dir_fd=dir_fd)
    try:
        os.setxattr(pinned_path(fd), key, value, flags)
    finally:
        os.close(fd)


def removexattr_at(dir_fd: int, name: bytes, key: bytes) -> None:
    """Remove attribute ``key`` of ``name`` below ``dir_fd``."""
    fd = os.open(name, _PIN, dir_fd=dir_fd)
    try:
        os.removexattr(pinned_path(fd), key)
    finally:
        os.close(fd)
