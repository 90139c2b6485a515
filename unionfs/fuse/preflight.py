"""What can be known to go wrong before anything is mounted or written.

Each check answers with one line that says what to do.  mount(2) itself would refuse in the same
cases, but with one of three errnos for a dozen reasons, and only after the branches were prepared.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from typing import Final

from unionfs.errors import ReportedError
from unionfs.fuse.mounting import DEVICE, find_helper
from unionfs.text import printable

_CAP_SYS_ADMIN: Final = 21
_NS_GET_USERNS: Final = 0xB701  # ioctl_ns(2)


class PreflightError(ReportedError):
    """The mount cannot work."""

    def __init__(self, number: int, problem: str, remedy: str) -> None:
        symbol = errno.errorcode.get(number, "EIO")
        super().__init__(number, f"{problem} ({symbol}): {remedy}")


def check_mountpoint(path: bytes) -> bytes:
    """Return the mount point as an absolute path without symbolic links.

    Raises PreflightError.
    """
    shown = printable(path)
    try:
        # What a mount covers is looked at, never opened.
        status = os.stat(path)
    except OSError as error:
        number = error.errno or errno.EIO
        problem, remedy = {
            errno.ENOENT: (f"mount point {shown} does not exist", f"create it: mkdir -p {shown}"),
            errno.ENOTDIR: (f"mount point {shown} is not a directory", "name a directory"),
            errno.ENOTCONN: (
                f"mount point {shown} holds a dead FUSE mount",
                f"free it: umount {shown} (as a plain user: fusermount3 -u {shown})",
            ),
            errno.EACCES: (
                f"no permission to reach mount point {shown}",
                "you need search permission on every directory above it",
            ),
            errno.ELOOP: (f"mount point {shown} is a loop of symbolic links", "name a directory"),
        }.get(
            number,
            (f"mount point {shown} cannot be used: {error.strerror}", "name another directory"),
        )
        raise PreflightError(number, problem, remedy) from error
    if not stat.S_ISDIR(status.st_mode):
        raise PreflightError(
            errno.ENOTDIR, f"mount point {shown} is not a directory", "name a directory"
        )
    return os.path.realpath(path)


def check_workdir(path: bytes) -> None:
    """Make sure that the work directory of an overlay mount is a directory.

    Only that: nothing is ever written there.  Raises PreflightError.
    """
    shown = printable(path)
    try:
        os.close(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        number = error.errno or errno.EIO
        problem, remedy = {
            errno.ENOENT: (f"workdir {shown} does not exist", "create it or correct the path"),
            errno.ENOTDIR: (f"workdir {shown} is not a directory", "name a directory"),
        }.get(number, (f"workdir {shown} cannot be used: {error.strerror}", "name another one"))
        raise PreflightError(number, problem, remedy) from error


def check_device() -> None:
    """Make sure that the FUSE device is there and may be used.  Raises PreflightError."""
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        number = error.errno or errno.EIO
        problem, remedy = f"{DEVICE} cannot be opened", "load the module: modprobe fuse"
        if number == errno.ENOENT:
            problem = f"there is no {DEVICE}"
            remedy = "load the module (modprobe fuse); in a container, pass the device to it"
        elif number in (errno.EACCES, errno.EPERM):
            problem = f"no permission to use {DEVICE}"
            remedy = "run as root, or let everybody use it (chmod 666 /dev/fuse)"
        raise PreflightError(number, problem, remedy) from error


def find_way(mountpoint: bytes) -> str | None:
    """Find out how this process can mount: by itself, or with the help of ``fusermount3``.

    mountpoint: as check_mountpoint returned it.
    Returns the path of the helper, None when mount(2) is allowed.  Raises PreflightError.
    """
    check_device()
    if may_mount():
        return None
    helper = find_helper() if os.geteuid() != 0 else None
    if helper is None:
        remedy = "run as root, or in a namespace of your own: unshare -Urm"
        if os.geteuid() != 0:
            remedy = "install fusermount3 (package fuse3), or " + remedy
        raise PreflightError(errno.EPERM, "no permission to mount", remedy)
    shown = printable(mountpoint)
    if not os.access(mountpoint, os.W_OK, effective_ids=True):
        raise PreflightError(
            errno.EACCES,
            f"mount point {shown} is not yours to cover",
            "a plain user needs write permission on it",
        )
    status = os.stat(mountpoint)
    if status.st_mode & stat.S_ISVTX and status.st_uid != os.geteuid():
        raise PreflightError(
            errno.EPERM,
            f"mount point {shown} is not yours to cover",
            "a plain user must own it, for it has the sticky bit",
        )
    return helper


def may_mount() -> bool:
    """Whether mount(2) is allowed: CAP_SYS_ADMIN, and over *this* mount namespace.

    Root in a user namespace that kept the mount namespace of the host has the capability, but not
    there.  A kernel that does not answer gets the benefit of the doubt.
    """
    with open("/proc/self/status", "rb") as lines:
        effective = next((line for line in lines if line.startswith(b"CapEff:")), None)
    if effective is not None and not int(effective.split()[1], 16) >> _CAP_SYS_ADMIN & 1:
        return False
    try:
        namespace = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        os.close(fcntl.ioctl(namespace, _NS_GET_USERNS))
    except OSError as error:
        # EPERM: the user namespace that owns the mounts is above ours, out of our sight.
        return error.errno != errno.EPERM
    finally:
        os.close(namespace)
    return True
