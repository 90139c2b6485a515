"""Mounting, unmounting, and looking at a mounted filesystem without the mounts on top of it."""

import ctypes
import os

from unionfs.syscalls._libc import fail, libc

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048

MNT_DETACH = 2

_SYS_OPEN_TREE = 428  # the same on every architecture
_OPEN_TREE_CLONE = 1
_SYS_MOUNT_SETATTR = 442
_MOUNT_ATTR_RDONLY = 0x01
_MOUNT_ATTR_NOATIME = 0x10
_MOUNT_ATTR_ATIME_BITS = 0x70
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_STATFS_SIZE = 120  # struct statfs; its first member is the magic number, one machine word


def mount(source: bytes, target: bytes, kind: bytes, flags: int, data: bytes) -> None:
    """Mount a filesystem (mount(2)).

    Args:
        source: shown as the first column of the mount table.
        target: path of the mount point.
        kind: filesystem type, such as ``fuse.aufs``.
        flags: ``MS_*`` bits.
        data: the filesystem's own options.

    Raises:
        OSError: ``EPERM`` without the right to mount, otherwise as mount(2).
    """
    if libc.mount(
        ctypes.c_char_p(source),
        ctypes.c_char_p(target),
        ctypes.c_char_p(kind),
        ctypes.c_ulong(flags),
        ctypes.c_char_p(data),
    ):
        fail(target)


def umount(target: bytes, flags: int = 0) -> None:
    """Unmount ``target`` (umount2(2)).

    Args:
        flags: 0, or ``MNT_DETACH`` to take it out of the tree now and drop it when unused.

    Raises:
        OSError: ``EINVAL`` when nothing is mounted there, ``EBUSY`` while it is in use.
    """
    if libc.umount2(ctypes.c_char_p(target), ctypes.c_int(flags)):
        fail(target)


def open_tree_clone(dir_fd: int) -> int:
    """Return a private view of the directory behind ``dir_fd`` in which nothing is mounted on top.

    Raises:
        OSError: ``EPERM`` without the right to mount, ``EINVAL`` where mounts below are locked,
            ``ENOSYS`` before Linux 5.2.
    """
    fd = libc.syscall(
        ctypes.c_long(_SYS_OPEN_TREE),
        ctypes.c_int(dir_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH),
    )
    if fd < 0:
        fail()
    return int(fd)


def forbid_writing(tree_fd: int) -> None:
    """Make a private view read-only, times of access included, whoever uses it (mount_setattr(2)).

    Args:
        tree_fd: from :func:`open_tree_clone`.

    Raises:
        OSError: ``EPERM`` where the flags of mounts are locked, ``ENOSYS`` before Linux 5.12.
    """
    # struct mount_attr: what to set, what to clear, propagation, id map.
    wanted = (ctypes.c_uint64 * 4)(
        _MOUNT_ATTR_RDONLY | _MOUNT_ATTR_NOATIME, _MOUNT_ATTR_ATIME_BITS, 0, 0
    )
    if libc.syscall(
        ctypes.c_long(_SYS_MOUNT_SETATTR),
        ctypes.c_int(tree_fd),
        ctypes.c_char_p(b""),
        ctypes.c_uint(_AT_EMPTY_PATH),
        wanted,
        ctypes.c_size_t(ctypes.sizeof(wanted)),
    ):
        fail()


def filesystem_magic(fd: int) -> int:
    """Return the type number of the filesystem that descriptor ``fd`` lies on (fstatfs(2))."""
    buffer = (ctypes.c_ulong * (_STATFS_SIZE // ctypes.sizeof(ctypes.c_ulong)))()
    if libc.fstatfs(ctypes.c_int(fd), buffer):
        fail()
    return int(buffer[0]) & 0xFFFFFFFF
