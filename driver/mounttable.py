"""The kernel's mount table: reading it, and taking entries out of it.

FUSE has one magic number for every filesystem there is, so ``statfs`` alone cannot tell whether a
layer is mounted: a root directory that itself lies on some FUSE filesystem would look mounted
everywhere. The table decides instead, by mount point and type (driver.md 1.4). What is learnt here
is a snapshot; callers that need it to hold take a lock of their own.

Paths are absolute, canonical ``str`` with surrogateescape.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from unionfs import syscalls
from unionfs.mount_table import answers, mount_table

KIND = "fuse.aufs"

_UMOUNT_NOFOLLOW = 8


class MountState(Enum):
    """What stands at a mount point."""

    ABSENT = "nothing of ours is mounted"
    LIVE = "mounted and answering"
    DEAD = "mounted, but its server is gone"


class MountEntry(NamedTuple):
    """One line of ``/proc/self/mountinfo``.

    Attributes:
        mount_point: where.
        kind: filesystem type, for ours ``fuse.aufs``.
        device: ``st_dev`` of everything in it.
    """

    mount_point: str
    kind: str
    device: int


def entries() -> Iterator[MountEntry]:
    """Yield the mounts of this process's namespace, in the kernel's order (older ones first)."""
    for line in mount_table():
        major, _, minor = line.device.partition(":")
        yield MountEntry(
            os.fsdecode(line.mountpoint), line.kind, os.makedev(int(major), int(minor))
        )


def canonical(path: str) -> str:
    """Return a mount point as the table has it; a symbolic link at its end is not followed."""
    above, name = os.path.split(os.path.abspath(path))
    return os.path.join(os.path.realpath(above), name)


def device_of(path: str) -> int | None:
    """Return the device number of our mount at exactly ``path``, the topmost one; None without."""
    found = [e.device for e in entries() if e.mount_point == path and e.kind == KIND]
    return found[-1] if found else None


def state(path: str) -> MountState:
    """Tell whether a union of ours is mounted exactly at ``path`` and whether it answers."""
    if device_of(path) is None:
        return MountState.ABSENT
    return MountState.LIVE if answers(path) else MountState.DEAD


def mounts_below(path: str) -> list[str]:
    """Return the mount points below ``path``, deepest and newest first."""
    inside = path.rstrip("/") + "/"
    found = [e.mount_point for e in entries() if e.mount_point.startswith(inside)]
    found.reverse()
    found.sort(key=lambda point: point.count("/"), reverse=True)
    return found


def is_bound_on_itself(path: str) -> bool:
    """Tell whether the directory mounted at ``path`` is the one that it covers.

    That is what engines do to have a mount whose propagation they can set (``mount --bind R R``).
    """
    table = {line.identity: line for line in mount_table()}
    top = [line for line in table.values() if os.fsdecode(line.mountpoint) == path]
    if not top:
        return False
    below = table.get(top[-1].parent)
    if below is None or below.device != top[-1].device:
        return False
    way = os.path.relpath(os.fsencode(path), below.mountpoint)
    return os.path.normpath(os.path.join(below.root, way)) == top[-1].root


def detach(path: str, *, lazy: bool) -> None:
    """Unmount ``path`` once, without following a symbolic link.

    Args:
        lazy: take it out of the tree even while it is in use.

    Raises:
        OSError: ``EINVAL`` when it is no mount point, ``EBUSY`` when in use, else as umount2(2).
    """
    flags = _UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
    try:
        syscalls.umount(os.fsencode(path), flags)
    except PermissionError:
        # A plain user's FUSE mount is undone by the set-uid helper that made it.
        if not any(e.mount_point == path and e.kind.startswith("fuse") for e in entries()):
            raise
        _fusermount(path, lazy=lazy)


def _fusermount(path: str, *, lazy: bool) -> None:
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except FileNotFoundError as error:
        raise OSError(errno.EPERM, "not allowed to unmount, and no fusermount3", path) from error
    if done.returncode:
        text = done.stderr.decode("utf-8", "replace").strip()
        busy = "busy" in text.lower()
        raise OSError(errno.EBUSY if busy else errno.EPERM, text or "fusermount3 failed", path)
