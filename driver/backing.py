"""Where layers may be kept: what the driver's root holds and what it lies on (driver.md 1.3).

The driver takes its root over, owner, mode and all. A directory with anything else in it is
therefore refused: it was named by mistake, or by a variable that was never set.

Of the filesystem below, the name goes into the status report. Few are refused: our own and the
kernel's aufs, where a branch could not hold whiteouts because their names are reserved there, and
ecryptfs, whose names are too short. FUSE filesystems share one magic number, so ours is known by
its mount.
"""

from __future__ import annotations

import os

from driver import mounttable
from driver.errors import IncompatibleFilesystemError, NotAStoreError
from unionfs import syscalls

UNKNOWN = "<unknown>"

_FUSE = 0x65735546
_NAMES = {
    0x61756673: "aufs",
    0x9123683E: "btrfs",
    0x28CD3D45: "cramfs",
    0xF15F: "ecryptfs",
    0xEF53: "extfs",
    0xF2F52010: "f2fs",
    _FUSE: "fuse",
    0x47504653: "gpfs",
    0x72B6: "jffs2",
    0x3153464A: "jfs",
    0x6969: "nfs",
    0x794C7630: "overlayfs",
    0x858458F6: "ramfs",
    0x52654973: "reiserfs",
    0x517B: "smb",
    0x73717368: "squashfs",
    0x01021994: "tmpfs",
    0xA501FCF5: "vxfs",
    0x58465342: "xfs",
    0x2FC12FC1: "zfs",
}
_REFUSED = frozenset({"aufs", "ecryptfs"})

_SIGNS = frozenset({"diff", "layers"})
# What may lie in a root that is not finished. It is no sign of one: "/" has a mnt as well.
_HARMLESS = frozenset({"mnt", "lost+found"})


def check_root(root: str) -> None:
    """Return when ``root`` is missing, empty, or a store of layers, be it half made.

    Raises:
        NotAStoreError: something else is kept there.
        OSError: it cannot be read.
    """
    try:
        names = frozenset(os.listdir(root))
    except FileNotFoundError:
        return
    if names <= _HARMLESS or names & _SIGNS:
        return
    raise NotAStoreError(
        f"{root} holds other things than layers: name a new directory, an empty one,"
        " or one that holds layers already"
    )


def backing_name(root: str) -> str:
    """Return the name of the filesystem below ``root``.

    Args:
        root: absolute path; while it is missing its nearest existing parent counts.

    Raises:
        IncompatibleFilesystemError: layers cannot be kept there.
        OSError: as open(2) or statfs(2).
    """
    place = root
    while not os.path.exists(place) and place != os.path.dirname(place):
        place = os.path.dirname(place)
    fd = os.open(place, os.O_PATH | os.O_CLOEXEC)
    try:
        magic = syscalls.filesystem_magic(fd)
        device = os.fstat(fd).st_dev
    finally:
        os.close(fd)
    name = _NAMES.get(magic, UNKNOWN)
    ours = magic == _FUSE and any(
        e.device == device and e.kind == mounttable.KIND for e in mounttable.entries()
    )
    if ours or name in _REFUSED:
        kind = mounttable.KIND if ours else name
        raise IncompatibleFilesystemError(
            f"{place} lies on {kind}, which cannot hold layers: choose a root on another filesystem"
        )
    return name
