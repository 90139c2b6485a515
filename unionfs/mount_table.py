"""The kernel's list of mounts, as this process's mount namespace has it.

It tells what is mounted where without asking any filesystem: a dead one would answer with an error,
and one that is served by this very process not at all. Whether one is dead is another question.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass

from unionfs.text import octal_unescape


@dataclass(frozen=True, slots=True)
class MountLine:
    """One line of /proc/self/mountinfo.

    Attributes:
        identity, parent: the numbers of the mount and of the one it is mounted on.
        device: major and minor number, as "0:42".
        root: which directory of the filesystem is mounted.
    """

    identity: int
    parent: int
    device: str
    root: bytes
    mountpoint: bytes
    kind: str
    source: bytes


def mount_table() -> Iterator[MountLine]:
    """Read the mounts of this mount namespace, lower ones first."""
    with open("/proc/self/mountinfo", "rb") as table:
        for line in table:
            fields, _, rest = line.rstrip(b"\n").partition(b" - ")
            words, kinds = fields.split(b" "), rest.split(b" ")
            yield MountLine(
                identity=int(words[0]),
                parent=int(words[1]),
                device=words[2].decode(),
                root=octal_unescape(words[3]),
                mountpoint=octal_unescape(words[4]),
                kind=kinds[0].decode(errors="replace"),
                source=octal_unescape(kinds[1]),
            )


def mounted_device(mountpoint: bytes) -> str:
    """Return "major:minor" of what is mounted on top of ``mountpoint``, "" when nothing is.

    Reads the mount table only: asking the mount itself would be a request that a daemon, calling
    this before it serves, waits for for ever.
    """
    device = ""
    for line in mount_table():
        if line.mountpoint == mountpoint:
            device = line.device
    return device


def answers(path: str | bytes) -> bool:
    """Tell whether the filesystem at ``path`` still has a server behind it.

    Raises:
        OSError: there is no such path, or it cannot be reached.
    """
    try:
        os.statvfs(path)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.EIO, errno.ECONNABORTED):
            return False
        raise
    return True
