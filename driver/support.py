"""Can a union be mounted here at all (driver.md 1.3, step 1)?

Two answers are wanted apart, because engines know two errors: *nested* means inside a user
namespace that may not mount, *not supported* means that FUSE is missing. Nothing is mounted to find
out; the kernel's own conditions are looked up instead: the capability over the user namespace that
owns the mount namespace, and an openable ``/dev/fuse``.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil

from driver.errors import AufsNestedError, AufsNotSupportedError

_DEVICE = "/dev/fuse"
_HELPER = "fusermount3"
_CAP_SYS_ADMIN = 21
_NS_GET_USERNS = 0xB701  # ioctl_ns(2): the user namespace that owns a namespace
_INITIAL_MAP = ["0", "0", "4294967295"]


def check_support() -> None:
    """Return when unions can be mounted.

    Raises:
        AufsNestedError: a user namespace without the right to mount.
        AufsNotSupportedError: no usable ``/dev/fuse``, or nothing that may mount.
    """
    may_mount = _has_admin() and _owns_mounts()
    if in_user_namespace() and not may_mount:
        raise AufsNestedError(
            "mounting needs CAP_SYS_ADMIN and a mount namespace of the same user namespace"
            " (unshare --user --map-root-user --mount)"
        )
    try:
        os.close(os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        name = errno.errorcode.get(error.errno or errno.EIO, "EIO")
        raise AufsNotSupportedError(f"cannot open {_DEVICE} ({name})") from error
    if not may_mount and shutil.which(_HELPER) is None:
        raise AufsNotSupportedError(f"not allowed to mount, and {_HELPER} is not installed (EPERM)")


def in_user_namespace() -> bool:
    """Tell whether this process is in a user namespace other than the host's first one."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.readline().split() != _INITIAL_MAP
    except FileNotFoundError:
        return False


def _has_admin() -> bool:
    with open("/proc/self/status", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return bool(int(line.split()[1], 16) >> _CAP_SYS_ADMIN & 1)
    return False


def _owns_mounts() -> bool:
    """Tell whether the mount namespace belongs to this process's own user namespace."""
    try:
        mounts = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            owner = fcntl.ioctl(mounts, _NS_GET_USERNS)
        finally:
            os.close(mounts)
    except OSError:
        return False  # the owner is a namespace that cannot even be seen from here
    try:
        return os.path.samestat(os.fstat(owner), os.stat("/proc/self/ns/user"))
    finally:
        os.close(owner)
